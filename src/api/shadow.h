/* Shadow traffic: copies of requests to another version, whose answers nobody waits for. */
#ifndef NR_API_SHADOW_H
#define NR_API_SHADOW_H

#include "api/call.h"

/* Copies c->in, which is complete and not submitted yet, to the version that the model's shadow label
 * points to. Never fails and never delays the call: what cannot be copied is counted as skipped. Loop
 * thread; c->wants_shadow is set. */
void nr_shadow_send(struct nr_call *c);

#endif
