// SPDX-License-Identifier: GPL-2.0-only
/* An io_uring that has pages of this process for long; see common.h. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../common.h"

/* A child has not got it. */
static void *ring_map(const struct ring *ring, size_t size, uint64_t offset)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		       ring->fd, (off_t)offset);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, size, MADV_DONTFORK);
	return p;
}

static int ring_register(struct ring *ring, void *start, size_t bytes)
{
	struct iovec iov = { start, bytes };
	struct io_uring_params *p = &ring->params;

	ring->fd = (int)syscall(__NR_io_uring_setup, 1, p);
	if (ring->fd < 0)
		return -errno;
	ring->sq_bytes = p->sq_off.array + p->sq_entries * sizeof(unsigned int);
	ring->cq_bytes = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
	ring->sqe_bytes = p->sq_entries * sizeof(*ring->sqe);
	ring->sq = ring_map(ring, ring->sq_bytes, IORING_OFF_SQ_RING);
	ring->cq = ring_map(ring, ring->cq_bytes, IORING_OFF_CQ_RING);
	ring->sqe = ring_map(ring, ring->sqe_bytes, IORING_OFF_SQES);
	if (!ring->sq || !ring->cq || !ring->sqe ||
	    syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, &iov, 1))
		return -errno;
	ring->start = start;
	return 0;
}

int ring_open(struct ring *ring, void *start, size_t bytes)
{
	int err;

	memset(ring, 0, sizeof(*ring));
	err = ring_register(ring, start, bytes);
	if (err)
		ring_close(ring);
	return err;
}

void ring_close(struct ring *ring)
{
	if (ring->start)
		syscall(__NR_io_uring_register, ring->fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
	if (ring->sq)
		munmap(ring->sq, ring->sq_bytes);
	if (ring->cq)
		munmap(ring->cq, ring->cq_bytes);
	if (ring->sqe)
		munmap(ring->sqe, ring->sqe_bytes);
	if (ring->fd >= 0)
		close(ring->fd);
	memset(ring, 0, sizeof(*ring));
}

int ring_move(struct ring *ring, int opcode, int fd, uint64_t off, uint32_t bytes)
{
	const struct io_sqring_offsets *s = &ring->params.sq_off;
	const struct io_cqring_offsets *c = &ring->params.cq_off;
	unsigned int *tail = (unsigned int *)(ring->sq + s->tail);
	unsigned int *head = (unsigned int *)(ring->cq + c->head);
	unsigned int mask = *(unsigned int *)(ring->cq + c->ring_mask);
	const struct io_uring_cqe *cqe = (void *)(ring->cq + c->cqes);
	int res;

	/* It has one place only. */
	*ring->sqe = (struct io_uring_sqe){
		.opcode = (uint8_t)opcode, .fd = fd, .off = off, .len = bytes,
		.addr = (uintptr_t)ring->start + off,
	};
	*(unsigned int *)(ring->sq + s->array) = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	if (__atomic_load_n((unsigned int *)(ring->cq + c->tail), __ATOMIC_ACQUIRE) == *head)
		return -EIO;
	res = cqe[*head & mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return res < 0 ? res : res == (int)bytes ? 0 : -EIO;
}
