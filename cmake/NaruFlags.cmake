# Warnings and hardening, on targets of their own: naru_hardening also covers third-party sources that
# we compile (CET holds for a program only if every object in it agrees), naru_flags is for our code.
# tests/build/check_binaries.py proves on the finished files that the hardening arrived.
include(CheckCCompilerFlag)
include(CheckPIESupported)
check_pie_supported(LANGUAGES C)

add_library(naru_hardening INTERFACE)
target_compile_options(naru_hardening INTERFACE -fstack-protector-strong -fstack-clash-protection
  -fno-strict-aliasing -fno-delete-null-pointer-checks)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  target_compile_options(naru_hardening INTERFACE -fcf-protection=full)
endif()
foreach(flag -ftrivial-auto-var-init=zero -fstrict-flex-arrays=3)
  string(MAKE_C_IDENTIFIER "have${flag}" known)
  check_c_compiler_flag("${flag}" ${known})
  if(${known})
    target_compile_options(naru_hardening INTERFACE ${flag})
  endif()
endforeach()
target_link_options(naru_hardening INTERFACE -Wl,-z,relro,-z,now,-z,noexecstack)
if(NARU_FUZZ) # coverage of the parsers themselves, not only of the targets
  target_compile_options(naru_hardening INTERFACE -fsanitize=fuzzer-no-link)
endif()
# FORTIFY needs optimisation and does not mix with sanitizers.
if(NARU_SANITIZE)
  target_compile_options(naru_hardening INTERFACE -fsanitize=${NARU_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(naru_hardening INTERFACE -fsanitize=${NARU_SANITIZE})
elseif(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  target_compile_options(naru_hardening INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
endif()

set(warnings -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith
  -Wwrite-strings -Wconversion -Wvla -Wformat=2 -Wundef -Wimplicit-fallthrough -Wold-style-definition
  -fno-common)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  list(APPEND warnings -Walloca -Wduplicated-cond -Wlogical-op -Wbidi-chars=any)
  if(NOT NARU_SANITIZE) # instrumented frames are larger than what we wrote
    list(APPEND warnings -Wstack-usage=16384)
  endif()
else()
  list(APPEND warnings -Wframe-larger-than=16384)
endif()

add_library(naru_flags INTERFACE)
target_link_libraries(naru_flags INTERFACE naru_hardening)
target_compile_features(naru_flags INTERFACE c_std_17)
target_compile_definitions(naru_flags INTERFACE _GNU_SOURCE NARU_VERSION="${PROJECT_VERSION}")
target_compile_options(naru_flags INTERFACE "$<$<COMPILE_LANGUAGE:C>:${warnings}>" -g)
# Tests fill generated messages by their INIT macros, which cast const away in sight of clang.
target_compile_options(naru_flags INTERFACE "$<$<NOT:$<BOOL:$<TARGET_PROPERTY:NARU_TEST>>>:-Wcast-qual>")
if(NARU_WERROR)
  target_compile_options(naru_flags INTERFACE -Werror)
endif()
