/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the agent know of one another. */
#ifndef AGENT_H
#define AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

#define PAGE			4096
#define MAX_CHANNELS		64
/* Largest piece of a program's output that goes into one frame. */
#define OUTPUT_PIECE		16384

/**
 * struct channel - one running program
 * @id:		the host's number; 0 marks a free slot
 * @pid:	the program, also its process group and session; 0 once reaped
 * @in:		write end of its stdin (a duplicate of the pty's master), or -1
 * @out:	read end of its stdout, or the pty's master, or -1
 * @err:	read end of its stderr, or -1
 * @hold:	the pty's slave, kept open lest the master see a hang-up, or -1
 * @pty:	@out and @in are a pty
 * @status:	as FROM_EXIT has it, valid once @pid is 0
 * @eof:	no more input will come
 * @head:	bytes of @pending already written
 * @fill:	bytes of @pending received
 * @pending:	input the program has not taken, one page mapped when first needed
 */
struct channel {
	uint32_t id;
	pid_t pid;
	int in;
	int out;
	int err;
	int hold;
	bool pty;
	bool eof;
	int status;
	size_t head;
	size_t fill;
	uint8_t *pending;
};

/* line.c: the line to the host */
void *shared_memory(size_t size);
void line_open(void);
int line_fd(void);
bool line_receive(void);
bool line_next(uint8_t *type, uint32_t *id, uint8_t **payload, size_t *len);
void line_send(uint8_t type, uint32_t id, const void *payload, size_t len);
void line_send_u32(uint8_t type, uint32_t id, uint32_t value);
void line_error(uint32_t id, const char *text);
ssize_t line_copy(uint8_t type, uint32_t id, int fd);
ssize_t line_file(uint32_t id, int fd, uint32_t mode, const char *dir,
		  const char *name);

/* channel.c: programs and their streams */
extern struct channel channels[MAX_CHANNELS];
struct channel *channel_find(uint32_t id);
void channel_exec(uint32_t id, uint8_t *payload, size_t len);
void channel_input(struct channel *c, const uint8_t *data, size_t len);
void channel_eof(struct channel *c);
void channel_feed(struct channel *c);
void channel_output(struct channel *c, int *fd, uint8_t type);
void channel_winsize(struct channel *c, const uint8_t *payload, size_t len);
void channel_reap(void);

/* loader.c: programs that need a file which is not there */
enum program_kind { PROGRAM_OTHER, PROGRAM_DYNAMIC, PROGRAM_SCRIPT };
/*
 * Say which kind of program @file (seen from the directory @dir) is, if what it
 * is loaded by is missing: that path is copied to @path, which has @room bytes.
 */
enum program_kind missing_loader(int dir, const char *file, char *path, size_t room);

/* survey.c: many small files at once */
int survey(uint32_t id, const char *paths, size_t len);

/* agent.c */
uint16_t get_u16(const uint8_t *p);
void put_u32(uint8_t *p, uint32_t value);
uint32_t get_u32(const uint8_t *p);

#endif
