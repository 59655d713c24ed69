#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Every static check. Runs them all, then says which failed.
#
#   lint.sh [CHECK...]
#
# CHECKs: spdx checkpatch sparse kerneldoc shell python guest. Default: all.
set -u

cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." || exit 125
kernel=${LINUX_UM_KERNEL:-6.12}
scratch=$(mktemp -d) || exit 125
trap 'rm -rf -- "$scratch"' EXIT
tree=''
failed=()

note() {
	printf 'lint: %s\n' "$*"
}

# The patched work tree, prepared once.
need_tree() {
	[ -n "$tree" ] || tree=$(./linux-um build --tree-only --kernel "$kernel")
	[ -d "$tree" ]
}

# Source files that the repository holds or that are about to be added to it.
sources() {
	git ls-files -z --cached --others --exclude-standard
}

check_spdx() {
	local file head bad=0
	while IFS= read -r -d '' file; do
		[ -f "$file" ] || continue
		case $file in
		LICENSE|*.md|*.png|*.patch|*.sha256|*/series|.gitignore|rootfs/etc/*|pksm/Documentation/ABI/*)
			continue ;;
		esac
		head=$(head -n 2 -- "$file" | tr -d '\0')
		case $head in
		*'SPDX-License-Identifier: GPL-2.0'*) ;;
		*)	[ -s "$file" ] && { echo "$file: no SPDX line"; bad=1; } ;;
		esac
	done < <(sources)
	return $bad
}

check_checkpatch() {
	need_tree || return 1
	./linux-um patches --kernel "$kernel" -o "$scratch/series" >/dev/null || return 1
	# New files need no change of MAINTAINERS here, and the names of the
	# accessors of page flags are what page-flags.h makes of them.
	# TRACE_EVENT() is laid out as everywhere in include/trace/events.
	(
		cd "$scratch" && for patch in series/*.patch; do
			ignored=FILE_PATH_CHANGES,CAMELCASE
			case $patch in
			*tracepoints*) ignored+=,OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT ;;
			esac
			perl "$tree/scripts/checkpatch.pl" --root "$tree" --strict --quiet \
				--summary-file --ignore "$ignored" "$patch"
		done
	) 2>&1 | grep -v 'No codespell typos will be found' | tee "$scratch/checkpatch"
	! grep -Eq '(^|: )(ERROR|WARNING|CHECK):' "$scratch/checkpatch"
}

# sparse and W=1 over the engine, as the fast profile builds it.
check_sparse() {
	local linux build status
	linux=$(./linux-um build --kernel "$kernel" --profile fast | head -n 1)
	[ -x "$linux" ] && need_tree || return 1
	build="${tree%/tree/*}/build/${tree##*/}/fast"
	# In a build directory of its own, so that real objects stay as they are.
	mkdir -p "$scratch/build" && cp "$build/.config" "$scratch/build/" || return 1
	make -s -C "$tree" O="$scratch/build" ARCH=um CC='ccache gcc' \
		-j"$(nproc)" prepare >"$scratch/prepare" 2>&1 || {
		tail -n 20 "$scratch/prepare"
		return 1
	}
	make -C "$tree" O="$scratch/build" ARCH=um CC='ccache gcc' -j"$(nproc)" \
		C=2 CF='-fdiagnostic-prefix -Wno-unknown-attribute' W=1 mm/pksm/ \
		>"$scratch/sparse" 2>&1
	status=$?
	if [ $status -ne 0 ]; then
		tail -n 20 "$scratch/sparse"
		return 1
	fi
	! grep -E '(mm/pksm|linux/pksm|events/pksm).*(warning|error):' "$scratch/sparse"
}

check_kerneldoc() {
	local files
	need_tree || return 1
	mapfile -d '' files < <(find pksm -name '*.[ch]' -print0)
	perl "$tree/scripts/kernel-doc" -none -Wall "${files[@]}" 2>&1 | tee "$scratch/doc"
	! grep -q . "$scratch/doc"
}

check_shell() {
	local file scripts=()
	while IFS= read -r -d '' file; do
		[ -f "$file" ] && head -n 1 -- "$file" | grep -Eq '^#!.*(ba)?sh\b' &&
			scripts+=("$file")
	done < <(sources)
	shellcheck -- "${scripts[@]}"
}

check_python() {
	local mypy=mypy
	[ -x /usr/bin/mypy ] && mypy=/usr/bin/mypy
	"$mypy" --config-file harness/mypy.ini harness/linux_um harness/tests &&
		MYPYPATH=gdb-scripts "$mypy" --config-file harness/mypy.ini -p pksm_gdb
}

# The guest's own programs must compile without a warning.
check_guest() {
	gcc -O2 -Wall -Wextra -Werror -std=gnu11 -static -o "$scratch/agent" rootfs/agent/*.c &&
		make -s -C rootfs/workloads OUT="$scratch/bin"
}

checks=("$@")
[ $# -gt 0 ] || checks=(spdx shell python guest checkpatch kerneldoc sparse)
for check in "${checks[@]}"; do
	if ! declare -F "check_$check" >/dev/null; then
		printf 'lint: there is no check %s\n' "$check" >&2
		exit 125
	fi
	if "check_$check"; then
		note "$check: fine"
	else
		note "$check: FAILED"
		failed+=("$check")
	fi
done
if [ ${#failed[@]} -gt 0 ]; then
	note "failed: ${failed[*]}"
	exit 1
fi
note 'all fine'
