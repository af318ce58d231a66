/* Intrusive doubly linked list; nodes live in their owners. Not thread safe. */
#ifndef NR_BASE_LIST_H
#define NR_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct nr_list {
    struct nr_list *prev, *next;
};

static inline void nr_list_init(struct nr_list *l)
{
    l->prev = l->next = l;
}
static inline bool nr_list_empty(const struct nr_list *l)
{
    return l->next == l;
}
static inline void nr_list_insert_before(struct nr_list *at, struct nr_list *node)
{
    node->prev = at->prev;
    node->next = at;
    at->prev->next = node;
    at->prev = node;
}
static inline void nr_list_append(struct nr_list *head, struct nr_list *node)
{
    nr_list_insert_before(head, node);
}
/* Safe on a node that was initialised and is in no list. */
static inline void nr_list_remove(struct nr_list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    nr_list_init(node);
}
static inline struct nr_list *nr_list_pop(struct nr_list *head)
{
    if (nr_list_empty(head)) {
        return NULL;
    }
    struct nr_list *first = head->next;
    nr_list_remove(first);
    return first;
}
/* Moves all nodes of `from` behind those of `to`. */
static inline void nr_list_splice(struct nr_list *to, struct nr_list *from)
{
    if (!nr_list_empty(from)) {
        from->next->prev = to->prev;
        to->prev->next = from->next;
        from->prev->next = to;
        to->prev = from->prev;
        nr_list_init(from);
    }
}
#define NR_LIST_FOREACH(node, head) \
    for (struct nr_list *node = (head)->next; node != (head); node = node->next)
#define NR_LIST_FOREACH_SAFE(node, tmp, head)                                    \
    for (struct nr_list *node = (head)->next, *tmp = node->next; node != (head); \
         node = tmp, tmp = node->next)

#endif
