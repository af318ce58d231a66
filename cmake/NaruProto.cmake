# protobuf messages: generated at build time by protoc-c, never committed; warnings off, they are not ours.
find_program(NARU_PROTOC_C NAMES protoc-c REQUIRED)
function(naru_proto_library target)
  set(out)
  foreach(proto ${ARGN})
    get_filename_component(stem "${proto}" NAME_WE)
    set(base "${CMAKE_BINARY_DIR}/gen/proto/${stem}.pb-c")
    add_custom_command(OUTPUT "${base}.c" "${base}.h"
      COMMAND ${CMAKE_COMMAND} -E make_directory "${CMAKE_BINARY_DIR}/gen/proto"
      COMMAND "${NARU_PROTOC_C}" "--c_out=${CMAKE_BINARY_DIR}/gen" "-I${CMAKE_SOURCE_DIR}" "${CMAKE_SOURCE_DIR}/proto/${proto}"
      DEPENDS "${CMAKE_SOURCE_DIR}/proto/${proto}" VERBATIM)
    list(APPEND out "${base}.c" "${base}.h")
  endforeach()
  add_library(${target} STATIC ${out})
  target_include_directories(${target} SYSTEM PUBLIC "${CMAKE_BINARY_DIR}/gen")
  target_compile_options(${target} PRIVATE -w)
  target_link_libraries(${target} PUBLIC PkgConfig::PROTOBUF_C PRIVATE naru_hardening)
endfunction()
