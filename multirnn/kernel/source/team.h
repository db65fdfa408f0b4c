/* A team of threads, the caller and workers that wait between calls; and memory kept between calls.

   Other processes may keep a worker from its core for milliseconds, and the caller must not wait for that. So work is not
   assigned to threads: every thread that is running takes the next item of a queue, and waits only for items that others have
   started. */
#ifndef TEAM_H
#define TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

_Static_assert(sizeof(long) == 8 && sizeof(void *) == 8, "the compiled recurrence needs 64-bit addresses and a 64-bit long");

/* Runs work(argument, rank) on the caller's thread, rank 0, and on up to `members` - 1 workers: those that arrive before the
   caller has finished. All take items of the same queue. One team works at a time; a second caller waits. */
typedef void team_work(void *argument, int rank);

/* Another library's thread pool, as `GOMP_parallel` of OpenMP: calls `run` on `threads` of its threads (0: on all), the
   caller's included, and returns when all have returned. */
typedef void lent_pool(void (*run)(void *), void *argument, unsigned threads, unsigned flags);

void multirnn_team(team_work *work, void *argument, int members, lent_pool *lent); /* NULL: the team's workers */

/* A count that threads wait for, and how many of them sleep. */
typedef struct {
    _Atomic long count;
    _Atomic int sleepers;
} counter;

/* The items of a call, numbered in the order in which they are taken; starts as zeros. */
typedef struct {
    _Atomic long taken;
    counter done;
} queue;

long multirnn_take(queue *queue, long end); /* the next item before `end`, or -1 */
void multirnn_done(queue *queue);           /* finishes an item */
void multirnn_wait(queue *queue, long end); /* until all items before `end` are finished */

/* A member's share of `count` things: the first, and one past the last. */
static inline void share(long count, int rank, int members, long *from, long *to)
{
    *from = count * rank / members;
    *to = count * (rank + 1) / members;
}

/* One member's pieces of the open phase that are not yet taken: phase << 32 | first << 16 | end. */
typedef struct home {
    _Atomic long left;
    char padding[128 - sizeof(long)]; /* processors fetch cache lines in pairs */
} home;

#define MOST_PIECES 0xffff /* panels, more than any weights have */

/* Work in phases: all pieces of one are done before the next begins. A member takes pieces from the front of its own home,
   whose weights stay in its core's cache from phase to phase; when that is empty it steals from the back of another home. So a
   slow or late member delays the others by at most one piece. */
typedef struct {
    home *homes; /* start as zeros */
    int count;
    _Atomic int present; /* members; a single one goes on without synchronisation */
    _Atomic long done;   /* pieces of the open phase */
    counter over;        /* 1 at the end */
} course;

typedef struct {
    long index, first, end; /* and the bounds of its home */
} piece;

/* A member's progress through a course; course is NULL if it is the only one. */
typedef struct {
    course *course;
    int home;  /* its own, or past the last */
    int opens; /* it opens the next phase: it began the course, or finished the last piece */
    int alone;
    long phase, pieces, done; /* done: pieces of this phase by this member */
    piece piece;
    int64_t start, worked;    /* nanoseconds: the start of the phase, the duration of a piece */
    int64_t nap, woke;        /* nanoseconds: the duration of the last nap, and its end */
} member;

member multirnn_join(course *course, int home, int begins);
long multirnn_reach(member *member);             /* waits for the next phase, and returns it; the first is 1 */
void multirnn_open(member *member, long pieces); /* before taking the first piece; 0: the course is over */
int multirnn_take_piece(member *member);         /* the next into `piece`; 0: none is left */
int multirnn_close(member *member);              /* when no piece is left: whether it finished the phase */

/* Uninitialised memory, aligned to 64 bytes; NULL if out of memory. Freed memory is kept for the next calls, up to a limit. */
void *multirnn_allocate(size_t bytes);
EXPORT void multirnn_free(void *memory);
EXPORT void multirnn_free_kept(void); /* returns kept memory to the system */

#endif
