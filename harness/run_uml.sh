#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The one place that knows the command line of a User-Mode Linux kernel.
#
#   run_uml.sh --linux FILE --initrd FILE --rundir DIR --mem SIZE
#              --line-in FD --line-out FD [--time-travel] [--swap FILE]
#              [--cpus NUMBER] [--append WORDS]... [--show] [--no-guard]
#
# Becomes the kernel (exec), with DIR as its current directory. FD are
# descriptors this script inherits: the agent's line, one for each way, so that
# blocking on output cannot block input. The kernel's log goes to stdout and
# stderr. --show prints the command instead of running it; --no-guard leaves
# out what ends the guest with its parent, for a debugger that forks it.
#
# Relative names keep the management socket, DIR/uml/guest/mconsole, short
# enough for a socket address wherever DIR is.
set -euo pipefail

die() {
	printf 'run_uml.sh: %s\n' "$1" >&2
	exit 125
}

linux='' initrd='' rundir='' mem=256M line_in='' line_out='' swap='' cpus=1
time_travel=0 show=0 guard=1
append=()
while [ $# -gt 0 ]; do
	case $1 in
	--time-travel)	time_travel=1; shift; continue ;;
	--show)		show=1; shift; continue ;;
	--no-guard)	guard=0; shift; continue ;;
	esac
	[ $# -ge 2 ] || die "$1: a value is missing"
	case $1 in
	--linux)	linux=$2 ;;
	--initrd)	initrd=$2 ;;
	--rundir)	rundir=$2 ;;
	--mem)		mem=$2 ;;
	--line-in)	line_in=$2 ;;
	--line-out)	line_out=$2 ;;
	--swap)		swap=$2 ;;
	--cpus)		cpus=$2 ;;
	--append)	append+=("$2") ;;
	*)		die "unknown option $1" ;;
	esac
	shift 2
done
[ -x "$linux" ] || die "--linux: '$linux' is not an executable file"
[ -r "$initrd" ] || die "--initrd: '$initrd' cannot be read"
[ -d "$rundir" ] || die "--rundir: '$rundir' is not a directory"
if [ -z "$line_in" ] || [ -z "$line_out" ]; then
	die '--line-in and --line-out are needed'
fi

command=("$linux"
	"mem=$mem" "initrd=$initrd"
	uml_dir=uml umid=guest
	con=null 'con0=null,fd:1' ssl=null "ssl0=fd:$line_in,fd:$line_out"
	console=tty0 noreboot)
if [ "$time_travel" = 1 ]; then
	command+=(time-travel=inf-cpu time-travel-start=0)
fi
# Without seccomp a stub can be run by one thread of the kernel only.
if [ "$cpus" != 1 ]; then
	command+=("ncpus=$cpus" seccomp=on)
fi
if [ -n "$swap" ]; then
	command+=("ubdb=$swap")
fi
# WORDS are words of the kernel's command line.
for words in "${append[@]}"; do
	read -r -a split <<< "$words"
	command+=("${split[@]}")
done
# The same addresses each time; without setarch, or where a container forbids
# personality(2), the guest runs all the same.
if setarch -R true 2>/dev/null; then
	command=(setarch -R "${command[@]}")
fi
if [ "$guard" = 1 ] && setpriv --pdeathsig KILL true 2>/dev/null; then
	command=(setpriv --pdeathsig KILL "${command[@]}")
fi

if [ "$show" = 1 ]; then
	printf '%q ' "${command[@]}"
	printf '\n'
	exit 0
fi
# glibc registers a restartable-sequences area for the kernel's thread; the
# processes of the guest inherit the registration, but in a statically linked
# kernel not the memory, and the host would end them by SIGSEGV.
export GLIBC_TUNABLES=glibc.pthread.rseq=0
cd -- "$rundir"
mkdir -p uml
exec "${command[@]}" < /dev/null
