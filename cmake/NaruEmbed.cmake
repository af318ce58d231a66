# Files of web/ as constants in a library: naru_embed(TARGET FOLDER).
#
# At build time this same file runs as a script (cmake -P) and writes one C source: the bytes, the
# content type by the name's ending, and a strong ETag (the first 16 bytes of SHA-256 of the bytes,
# so it is the same on every machine and changes exactly with the content). The contract of what it
# defines is src/api/page_file.h.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  set(NARU_EMBED_SCRIPT "${CMAKE_CURRENT_LIST_FILE}")
  function(naru_embed target folder)
    file(GLOB files CONFIGURE_DEPENDS "${folder}/*")
    set(out "${CMAKE_BINARY_DIR}/gen/web/page_files.c")
    add_custom_command(OUTPUT "${out}"
      COMMAND ${CMAKE_COMMAND} "-DFOLDER=${folder}" "-DOUT=${out}" -P "${NARU_EMBED_SCRIPT}"
      DEPENDS ${files} "${NARU_EMBED_SCRIPT}"
      COMMENT "Embedding the page" VERBATIM)
    target_sources(${target} PRIVATE "${out}")
  endfunction()
  return()
endif()

cmake_minimum_required(VERSION 3.22)
set(type_html "text/html; charset=utf-8")
set(type_css "text/css; charset=utf-8")
set(type_js "text/javascript; charset=utf-8")
set(type_svg "image/svg+xml")

file(GLOB files "${FOLDER}/*")
list(SORT files)
set(data "")
set(table "")
set(n 0)
foreach(file ${files})
  get_filename_component(name "${file}" NAME)
  string(REGEX REPLACE "^.*\\." "" ending "${name}")
  if(NOT DEFINED type_${ending})
    message(FATAL_ERROR "${name}: no content type is known for .${ending}; add one to NaruEmbed.cmake")
  endif()
  file(READ "${file}" hex HEX)
  string(LENGTH "${hex}" length)
  math(EXPR length "${length} / 2")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  # lines of 20 bytes: compilers and people do not like one line of 60 kB
  string(REGEX REPLACE "(....................................................................................................)" "\\1\n" bytes "${bytes}")
  file(SHA256 "${file}" hash)
  string(SUBSTRING "${hash}" 0 32 hash)
  string(APPEND data "static const unsigned char file_${n}[] = {\n${bytes}\n};\n")
  string(APPEND table
    "    {NR_STR_INIT(\"${name}\"), NR_STR_INIT(\"${type_${ending}}\"), NR_STR_INIT(\"\\\"${hash}\\\"\"), file_${n}, ${length}},\n")
  math(EXPR n "${n} + 1")
endforeach()
file(WRITE "${OUT}" "/* Made by cmake/NaruEmbed.cmake from web/. */
#include \"api/page_file.h\"

${data}
const struct nr_page_file nr_page_files[] = {
${table}};
const unsigned nr_page_n_files = ${n};
")
