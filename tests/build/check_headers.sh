#!/bin/sh
# check_headers.sh INCLUDE-FOLDER: every public header compiles alone, as C99 and as C++17, without a
# warning: who writes a plug-in may include any of them first, from either language.
passed=0 failed=0
for header in "$1"/naru/*.h; do
	name=naru/${header##*/}
	for command in 'gcc -std=c99 -x c' 'g++ -std=c++17 -x c++'; do
		if ! command -v "${command%% *}" >/dev/null; then
			echo "SKIP: no ${command%% *} here"
			continue
		fi
		# $command is split into words on purpose.
		# shellcheck disable=SC2086
		if printf '#include "%s"\n' "$name" | $command -Wall -Wextra -Wpedantic -Werror -I "$1" -fsyntax-only -; then
			passed=$((passed + 1))
		else
			echo "FAILED $name: $command"
			failed=$((failed + 1))
		fi
	done
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
