/* The team: the caller's thread and workers that wait between calls; and memory that is kept from call to call. */
#ifndef TEAM_H
#define TEAM_H

#include <stdatomic.h>
#include <stddef.h>

/* Where all members of a team wait for each other; begins as zeros, and may be met at again and again. */
typedef struct {
    _Atomic int arrived;
    _Atomic int generation;
} meeting;

void multirnn_meet(meeting *place, int members);

/* work(argument, rank, members) on so many threads at once, of which the caller's is rank 0; fewer where there are no more.
   One team works at a time; a second caller waits. */
typedef void team_work(void *argument, int rank, int members);
void multirnn_team(team_work *work, void *argument, int members);

/* Memory aligned to 64 bytes, of no particular content; NULL where there is none. */
void *multirnn_borrow(size_t bytes);
void multirnn_give_back(void *memory);

#endif
