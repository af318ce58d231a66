#!/bin/sh
# check_install.sh BUILD-FOLDER: `cmake --install` under a prefix of our choice gives a tree that works
# wherever it lies: the program starts and finds its plug-ins, naru.pc leads to the headers.
build=$1 passed=0 failed=0
root=$(mktemp -d) || exit 1
trap 'rm -rf "$root"' EXIT
check() { # NAME COMMAND…
	name=$1
	shift
	if "$@" >"$root/out" 2>&1; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		echo "FAILED $name: $*"
		sed 's/^/    /' "$root/out"
	fi
}
check "it installs" cmake --install "$build" --prefix "$root/first"
mv "$root/first" "$root/moved"
check "the program starts" "$root/moved/bin/naru" --version
for command in serve why; do
	check "manual of $command" grep -q "^.TH NARU-$command 1" "$root/moved/share/man/man1/naru-$command.1"
done
check "completions for bash" grep -q -- --http-port "$root/moved/share/bash-completion/completions/naru"
check "completions for zsh" grep -q "^#compdef naru" "$root/moved/share/zsh/site-functions/_naru"
check "licence" test -s "$root/moved/share/doc/naru/LICENSE"
pc=$(find "$root/moved" -name naru.pc)
check "naru.pc" test -n "$pc"
PKG_CONFIG_PATH=${pc%/*} PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1
export PKG_CONFIG_PATH PKG_CONFIG_ALLOW_SYSTEM_CFLAGS
backends=$(pkg-config --variable=backendsdir naru)
for name in identity delay fault agent-trace batching-volume; do
	check "plug-in $name" test -f "$backends/naru-$name.so"
done
printf '#include <naru/backend.h>\nNARU_EXPORT const naru_backend *naru_backend_entry(void)\n{\n    return 0;\n}\n' >"$root/p.c"
# The flags are split into words on purpose.
# shellcheck disable=SC2046
check "a plug-in compiles against it" cc -shared -fPIC -Wall -Wextra -Werror $(pkg-config --cflags naru) -o "$root/p.so" "$root/p.c"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
