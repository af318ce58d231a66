# Warnings and hardening, on a target of their own so that third-party sources are left out.
add_library(naru_flags INTERFACE)
target_compile_features(naru_flags INTERFACE c_std_17)
target_compile_definitions(naru_flags INTERFACE _GNU_SOURCE)
target_include_directories(naru_flags INTERFACE "${CMAKE_SOURCE_DIR}/include" "${CMAKE_SOURCE_DIR}/src")

set(warnings -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith
  -Wcast-qual -Wwrite-strings -Wvla -Wformat=2 -Wundef -Wimplicit-fallthrough -Wold-style-definition
  -fno-common)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  list(APPEND warnings -Walloca -Wduplicated-cond -Wlogical-op -Wstack-usage=16384)
endif()
target_compile_options(naru_flags INTERFACE "$<$<COMPILE_LANGUAGE:C>:${warnings}>")
if(NARU_WERROR)
  target_compile_options(naru_flags INTERFACE -Werror)
endif()

# Hardening. FORTIFY needs optimisation and does not mix with sanitizers.
target_compile_options(naru_flags INTERFACE -fstack-protector-strong -fstack-clash-protection
  -fno-strict-aliasing -fno-delete-null-pointer-checks)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  target_compile_options(naru_flags INTERFACE -fcf-protection=full)
endif()
target_link_options(naru_flags INTERFACE -Wl,-z,relro,-z,now,-z,noexecstack)
if(NARU_SANITIZE)
  target_compile_options(naru_flags INTERFACE -fsanitize=${NARU_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(naru_flags INTERFACE -fsanitize=${NARU_SANITIZE})
elseif(NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  target_compile_options(naru_flags INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
endif()
target_compile_options(naru_flags INTERFACE -g)
