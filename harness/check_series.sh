#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The exported series, step by step on a vanilla tree: each patch applies by
# `git am`, and after each one everything that the series touches compiles,
# with PKSM off and, from the patch on that brings it, with PKSM on and its unit
# tests. In the end the selftests build as their own documentation says.
#
#   check_series.sh [--apply-only]
set -eu

cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."
kernel=${LINUX_UM_KERNEL:-6.12}
tree=$(./linux-um build --tree-only --kernel "$kernel")
cache=${tree%/tree/*}
pristine=$cache/src/${tree##*/}
mkdir -p "$cache/build"
scratch=$(mktemp -d "$cache/build/series-XXXXXX")
trap 'rm -rf -- "$scratch"' EXIT

./linux-um patches --kernel "$kernel" -o "$scratch/series" >/dev/null

# Hard links, since no tool below writes into a source file: git replaces.
cp -a --link "$pristine" "$scratch/tree" 2>/dev/null || {
	rm -rf "$scratch/tree"
	cp -a "$pristine" "$scratch/tree"
}
git_here() {
	git -C "$scratch/tree" -c user.name=check -c user.email=check@localhost \
		-c core.autocrlf=false -c gc.auto=0 "$@"
}

# Only the files that the series touches need to be known to git.
touched=$(sed -n 's|^+++ b/\([^\t]*\).*|\1|p; s|^--- a/\([^\t]*\).*|\1|p' \
	"$scratch"/series/*.patch | sort -u)
git_here init -q
while IFS= read -r name; do
	[ ! -f "$scratch/tree/$name" ] || git_here add -f -- "$name"
done <<< "$touched"
git_here commit -q -m vanilla

compile() {
	local wish=$1 build=$scratch/build-$1 objects
	local make=(make -s -C "$scratch/tree" "O=$build" ARCH=um "CC=ccache gcc"
		"-j$(nproc)")
	mkdir -p "$build"
	sed '/CONFIG_KSM=/d' um-config/base.config > "$build/wishes"
	case $wish in
	off)	echo '# CONFIG_KSM is not set' ;;
	classic) echo 'CONFIG_KSM=y' ;;
	pksm)	printf '%s\n' CONFIG_KSM=y CONFIG_PKSM=y CONFIG_KUNIT=y \
			CONFIG_PKSM_KUNIT_TEST=y ;;
	esac >> "$build/wishes"
	mapfile -t objects < <(printf '%s\n' "$touched" |
		sed -n 's|^\(mm\|fs\|kernel\)/.*\.c$|\1/|p' | sort -u)
	if KCONFIG_ALLCONFIG=$build/wishes "${make[@]}" allnoconfig >"$build/log" 2>&1 &&
	   { [ "$wish" != pksm ] ||
	     [ "$(grep -Ec '^CONFIG_PKSM(_KUNIT_TEST)?=y' "$build/.config")" = 2 ]; } &&
	   "${make[@]}" prepare "${objects[@]}" >>"$build/log" 2>&1; then
		return 0
	fi
	tail -n 20 "$build/log"
	return 1
}

status=0
for patch in "$scratch"/series/*.patch; do
	name=${patch##*/}
	if ! git_here am -q "$patch" >"$scratch/am" 2>&1; then
		cat "$scratch/am"
		echo "series: $name does not apply"
		exit 1
	fi
	wishes=()
	if [ "${1-}" != --apply-only ]; then
		wishes=(off classic)
		if grep -Eq '^config PKSM$|^source "mm/pksm/Kconfig"$' \
				"$scratch/tree/mm/Kconfig"; then
			wishes+=(pksm)
		fi
	fi
	for wish in "${wishes[@]}"; do
		if ! compile "$wish"; then
			echo "series: $name does not compile with KSM $wish"
			status=1
		fi
	done
	echo "series: $name: fine"
done
if [ "${1-}" != --apply-only ] &&
   ! make -s -C "$scratch/tree/tools/testing/selftests" TARGETS=pksm FORCE_TARGETS=1 \
		>"$scratch/selftests" 2>&1; then
	tail -n 20 "$scratch/selftests"
	echo 'series: the selftests do not compile'
	status=1
fi
for name in $touched; do
	if ! diff -qN "$scratch/tree/$name" "$tree/$name" >/dev/null; then
		echo "series: $name differs between the exported series and the work tree"
		status=1
	fi
done
exit $status
