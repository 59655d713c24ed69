/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The frames between the host and the agent, PID 1 of the guest.
 *
 * This file is the definition; harness/linux_um/protocol.py mirrors it.
 *
 * A frame is a header of 9 bytes and a payload:
 *
 *	u8  type	one of the enums below
 *	u32 channel	0 is the agent itself; the host picks any other number
 *	u32 length	bytes of payload, at most FRAME_MAX
 *
 * All integers are little-endian. The host must not send before it has
 * received HELLO: until then the line is not yet in raw mode.
 *
 * A channel is opened by EXEC, READ, WRITE, MOUNT or SURVEY and ends with
 * exactly one EXIT from the guest, which is the last frame of that channel.
 * Frames for a channel that has ended are ignored: they may have crossed its
 * EXIT.
 */
#ifndef AGENT_PROTOCOL_H
#define AGENT_PROTOCOL_H

#define PROTOCOL_VERSION	3
#define FRAME_HEADER		9
#define FRAME_MAX		32768
/*
 * Bytes that the host may send before it has got a TAKEN for them. The tty of
 * the line holds 4096; close to that the kernel would throttle the line, and
 * UML's driver does not recover from being throttled.
 */
#define LINE_WINDOW		3072
/* TAKEN comes after at least so many bytes. */
#define LINE_STEP		1024
/* Bytes of STDIN that the host may send before it has got a CREDIT for them. */
#define STDIN_WINDOW		4096

enum to_guest {
	/*
	 * Run a program. u8 flags (EXEC_PTY), u16 rows, u16 columns, u16 argc,
	 * u16 envc; then, each ended by a NUL: the working directory, argc
	 * arguments, envc environment strings. A name without a slash is
	 * looked up in the PATH of that environment.
	 */
	TO_EXEC		= 1,
	/* Bytes for the standard input. */
	TO_STDIN	= 2,
	/* No more input: close the pipe, or type the EOF character on a pty. */
	TO_STDIN_EOF	= 3,
	/* u8 signal number, for the whole process group of the channel. */
	TO_SIGNAL	= 4,
	/* u16 rows, u16 columns: the new size of the channel's pty. */
	TO_WINSIZE	= 5,
	/*
	 * Read the file whose path is the payload: STDOUT frames, then EXIT.
	 * The agent does this itself, so no page but its own buffer changes.
	 */
	TO_READ		= 6,
	/* Path, NUL, bytes: write them to the file by one write(2); EXIT. */
	TO_WRITE	= 7,
	/* Host directory, NUL, guest directory, NUL: hostfs; EXIT. */
	TO_MOUNT	= 8,
	/* End everything, u8 exit status of the machine. No answer. */
	TO_SHUTDOWN	= 9,
	/*
	 * Files to read, and directories whose files to read, each ended by a
	 * NUL. For each regular file a STDOUT frame: u32 st_mode, path, NUL,
	 * and as much of its content as one read(2) of SURVEY_PIECE gives.
	 * What cannot be read is left out. EXIT: 0, or the errno of the last
	 * path that could not be opened.
	 */
	TO_SURVEY	= 10,
};

#define EXEC_PTY	1
/* Bytes of a file that SURVEY sends at most; sysfs has no file that is longer. */
#define SURVEY_PIECE	4096

enum to_host {
	/* Sent once: u32 PROTOCOL_VERSION, then the kernel's uname text. */
	FROM_HELLO	= 65,
	FROM_STDOUT	= 66,
	FROM_STDERR	= 67,
	/* u32: so many bytes of STDIN have gone to the program (or nowhere). */
	FROM_CREDIT	= 68,
	/*
	 * u32 status, as a shell has it: the exit status, 128 + signal, 127 not
	 * found, 126 not executable. For the others: 0 or an errno.
	 */
	FROM_EXIT	= 69,
	/* Text for the host's log: a frame the agent could not make sense of. */
	FROM_ERROR	= 70,
	/* u32: the agent has taken so many more bytes off the line. */
	FROM_TAKEN	= 71,
};

#endif
