/* HTTP/1.1: what its parts share: h1.c reads messages, h1_head.c judges heads,
 * h1_write.c writes responses. */
#ifndef NR_HTTP_H1_H
#define NR_HTTP_H1_H

#include "http/engine.h"

/* Answers the message being read with an error of the engine; the connection ends behind it.
 * `text` needs no JSON escapes. */
void nr_h1_refuse(struct nr_conn *c, int status, const char *text);
/* Builds the exchange out of the complete head; true when the message was refused. */
bool nr_h1_refuse_head(struct nr_conn *c, struct nr_xp *xp);
/* Queues a response, or keeps it in the exchange until its turn comes. */
void nr_h1_emit(struct nr_xp *xp, const struct nr_response *r);
/* The same for a response in parts: its head, and then whatever parts there is room for. */
void nr_h1_begin(struct nr_xp *xp, const struct nr_response *r);
void nr_h1_pump(struct nr_xp *xp);
/* Sends 100-continue when the message being read waits for it and all before it are answered. */
void nr_h1_continue(struct nr_conn *c);
/* Finishes exchanges whose bytes are gone. */
void nr_h1_sent(struct nr_conn *c);

#endif
