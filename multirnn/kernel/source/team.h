/* The team: the caller's thread and workers that wait between calls; and memory that is kept from call to call.

   A worker may come late, or not at all: where other work has its core, the caller would wait for milliseconds. So nobody
   counts on it. What is to be done lies on an agenda, whoever is there takes the next item, and only an item that somebody
   has begun is waited for. */
#ifndef TEAM_H
#define TEAM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(sizeof(long) == 8 && sizeof(void *) == 8, "the compiled recurrence needs 64-bit addresses and a 64-bit long");

/* work(argument, rank) by the caller, whose rank is 0, and by those of `members` - 1 workers that come before the caller is
   through. Each runs through the same agenda. One team works at a time; a second caller waits. */
typedef void team_work(void *argument, int rank);

/* A pool of threads of somebody else: runs something on so many of them, 0: on all, the caller's among them, and returns when
   all have. As `GOMP_parallel` of the OpenMP libraries. */
typedef void lent_pool(void (*run)(void *), void *argument, unsigned threads, unsigned flags);

void multirnn_team(team_work *work, void *argument, int members, lent_pool *lent); /* or NULL: of workers of our own */

/* What others wait for to grow, and how many of them sleep. */
typedef struct {
    _Atomic long count;
    _Atomic int sleepers;
} counter;

/* The items of a call, counted from 0 in the order in which they are taken; begins as zeros. */
typedef struct {
    _Atomic long taken;
    counter done;
} agenda;

long multirnn_take(agenda *agenda, long end); /* the next item before `end`, or -1 */
void multirnn_done(agenda *agenda);           /* with an item that was taken */
void multirnn_wait(agenda *agenda, long end); /* until all items before `end` are done */

/* Of `count` things the first and one past the last that are a member's. */
static inline void share(long count, int rank, int members, long *from, long *to)
{
    *from = count * rank / members;
    *to = count * (rank + 1) / members;
}

/* The pieces of one member: those of the phase that is open, and of them what is left, phase << 32 | first << 16 | end. */
typedef struct home {
    _Atomic long left;
    char padding[128 - sizeof(long)]; /* processors fetch two lines of a cache at once */
} home;

#define MOST_PIECES 0xffff /* panels: of more units than any weights have room for */

/* Work in phases: all pieces of one have to be done before the next. Every member takes pieces of its own home from the front,
   so that its core keeps near what they need from phase to phase; who has none left takes from the back of another's. So
   nobody is waited for but who has begun a piece, however slow or late somebody is. */
typedef struct {
    home *homes; /* begin as zeros */
    int count;
    _Atomic int present; /* how many have come: who is alone goes on by itself, without a word to anybody */
    _Atomic long done;   /* pieces of the phase */
    counter over;        /* 1 at the end */
} course;

typedef struct {
    long index, first, end; /* the bounds of the home */
} piece;

/* One on its way through a course; where `course` is NULL, there is nobody else. */
typedef struct {
    course *course;
    int home;  /* or beyond them all */
    int opens; /* the next phase: it began the course, or did the last piece */
    int alone;
    long phase, pieces, done; /* pieces it did itself */
    piece piece;
    int64_t start, worked;    /* nanoseconds: when the phase began, and of one piece */
    int64_t nap, woke;        /* nanoseconds: the last nap, and when it was over */
} member;

member multirnn_join(course *course, int home, int begins);
long multirnn_reach(member *member);             /* the next phase that somebody is in, from 1 on */
void multirnn_open(member *member, long pieces); /* before the first of them is taken; 0: nothing follows */
int multirnn_take_piece(member *member);         /* the next one into `piece`; 0 where there is none */
int multirnn_close(member *member);              /* no piece left: whether it did the last one, and nobody has gone on */

/* Memory aligned to 64 bytes, of no particular content; NULL where there is none. */
void *multirnn_borrow(size_t bytes);
void multirnn_give_back(void *memory);
void multirnn_release(void); /* of the memory that is kept for the next calls */

#endif
