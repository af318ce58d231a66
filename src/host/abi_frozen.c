/* The layout of ABI 1, frozen: a plug-in built today must work with a server built later.
 *
 * Why so: a changed offset is the one mistake of an interface of tables that no test of behaviour
 * notices, since server and plug-ins of one tree always agree. Numbers below are those of 64-bit
 * little-endian machines; a new slot or member adds a line, nothing else may change here while
 * NARU_ABI_MAJOR is 1. Sizes are frozen for the structs that come in arrays, and the size of the
 * growing ones is their size in 1.0 ("at least").
 */
#include <stddef.h>

#include "naru/agent.h"
#include "naru/backend.h"
#include "naru/batching.h"

#define AT(type, member, offset) \
    _Static_assert(offsetof(type, member) == (offset), #type "." #member " has moved")
#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type " has another size")
#define GROWS(type, bytes) _Static_assert(sizeof(type) >= (bytes), #type " has shrunk")

_Static_assert(NARU_ABI_MAJOR == 1 && NARU_AGENT_ABI_MAJOR == 1 && NARU_BATCHING_ABI_MAJOR == 1,
               "a new major version needs a new file like this one");
_Static_assert(sizeof(void *) == 8, "offsets are those of 64-bit machines");

SIZE(naru_option, 16);
AT(naru_option, key, 0);
AT(naru_option, value, 8);

GROWS(naru_text, 16);
AT(naru_text, struct_size, 0);
AT(naru_text, capacity, 4);
AT(naru_text, data, 8);

SIZE(naru_io, 32);
AT(naru_io, name, 0);
AT(naru_io, shape, 8);
AT(naru_io, rank, 16);
AT(naru_io, dtype, 20);
AT(naru_io, optional, 24);
AT(naru_io, reserved, 28);

GROWS(naru_region, 32);
AT(naru_region, struct_size, 0);
AT(naru_region, mem_type, 4);
AT(naru_region, mem_id, 8);
AT(naru_region, fd, 12);
AT(naru_region, base, 16);
AT(naru_region, bytes, 24);

SIZE(naru_segment, 32);
AT(naru_segment, region, 0);
AT(naru_segment, offset, 8);
AT(naru_segment, bytes, 16);
AT(naru_segment, request, 24);
AT(naru_segment, reserved, 28);

SIZE(naru_tensor, 56);
AT(naru_tensor, name, 0);
AT(naru_tensor, index, 8);
AT(naru_tensor, dtype, 12);
AT(naru_tensor, shape, 16);
AT(naru_tensor, rank, 24);
AT(naru_tensor, n_segments, 28);
AT(naru_tensor, segments, 32);
AT(naru_tensor, bytes, 40);
AT(naru_tensor, reserved, 48);

GROWS(naru_model_info, 48);
AT(naru_model_info, struct_size, 0);
AT(naru_model_info, n_inputs, 4);
AT(naru_model_info, n_outputs, 8);
AT(naru_model_info, flags, 12);
AT(naru_model_info, inputs, 16);
AT(naru_model_info, outputs, 24);
AT(naru_model_info, platform, 32);
AT(naru_model_info, weight_bytes, 40);
AT(naru_model_info, input_symbols, 48); /* 1.1 */
AT(naru_model_info, used_options, 56);

GROWS(naru_model_args, 88);
AT(naru_model_args, struct_size, 0);
AT(naru_model_args, dir_fd, 4);
AT(naru_model_args, name, 8);
AT(naru_model_args, file, 16);
AT(naru_model_args, path, 24);
AT(naru_model_args, version, 32);
AT(naru_model_args, options, 40);
AT(naru_model_args, n_options, 48);
AT(naru_model_args, threads, 52);
AT(naru_model_args, device, 56);
AT(naru_model_args, max_batch_size, 60);
AT(naru_model_args, inputs, 64);
AT(naru_model_args, outputs, 72);
AT(naru_model_args, n_inputs, 80);
AT(naru_model_args, n_outputs, 84);

SIZE(naru_request, 48);
AT(naru_request, id, 0);
AT(naru_request, deadline_ns, 8);
AT(naru_request, sequence_id, 16);
AT(naru_request, options, 24);
AT(naru_request, n_options, 32);
AT(naru_request, sequence_flags, 36);
AT(naru_request, rows, 40);
AT(naru_request, reserved, 44);

GROWS(naru_batch, 56);
AT(naru_batch, struct_size, 0);
AT(naru_batch, n_requests, 4);
AT(naru_batch, n_inputs, 8);
AT(naru_batch, n_outputs, 12);
AT(naru_batch, rows, 16);
AT(naru_batch, requests, 24);
AT(naru_batch, inputs, 32);
AT(naru_batch, outputs, 40);
AT(naru_batch, host, 48);
AT(naru_batch, form, 56); /* 1.2 */
AT(naru_batch, reserved, 60);

GROWS(naru_host, 80);
AT(naru_host, struct_size, 0);
AT(naru_host, abi_major, 4);
AT(naru_host, abi_minor, 6);
AT(naru_host, output_alloc, 8);
AT(naru_host, request_fail, 16);
AT(naru_host, request_cancelled, 24);
AT(naru_host, batch_done, 32);
AT(naru_host, response_send, 40);
AT(naru_host, log, 48);
AT(naru_host, response_alloc, 56);
AT(naru_host, response_wait, 64);
AT(naru_host, request_again, 72);

GROWS(naru_device_info, 32);
AT(naru_device_info, struct_size, 0);
AT(naru_device_info, kind, 4);
AT(naru_device_info, id, 8);
AT(naru_device_info, reserved, 12);
AT(naru_device_info, memory_bytes, 16);
AT(naru_device_info, name, 24);

GROWS(naru_backend, 144);
AT(naru_backend, struct_size, 0);
AT(naru_backend, abi_major, 4);
AT(naru_backend, abi_minor, 6);
AT(naru_backend, name, 8);
AT(naru_backend, version, 16);
AT(naru_backend, caps, 24);
AT(naru_backend, lib_open, 32);
AT(naru_backend, lib_close, 40);
AT(naru_backend, model_open, 48);
AT(naru_backend, model_close, 56);
AT(naru_backend, model_info, 64);
AT(naru_backend, instance_open, 72);
AT(naru_backend, instance_close, 80);
AT(naru_backend, execute, 88);
AT(naru_backend, cancel, 96);
AT(naru_backend, thread_budget, 104);
AT(naru_backend, device_count, 112);
AT(naru_backend, device_get, 120);
AT(naru_backend, model_memory, 128);
AT(naru_backend, model_trim, 136);
AT(naru_backend, model_form, 144); /* 1.2 */

GROWS(naru_agent_call, 48);
AT(naru_agent_call, struct_size, 0);
AT(naru_agent_call, action, 4);
AT(naru_agent_call, model, 8);
AT(naru_agent_call, options, 16);
AT(naru_agent_call, n_options, 24);
AT(naru_agent_call, dir_fd, 28);
AT(naru_agent_call, path, 32);
AT(naru_agent_call, host, 40);

GROWS(naru_agent_host, 56);
AT(naru_agent_host, struct_size, 0);
AT(naru_agent_host, abi_major, 4);
AT(naru_agent_host, abi_minor, 6);
AT(naru_agent_host, log, 8);
AT(naru_agent_host, file_open, 16);
AT(naru_agent_host, file_each, 24);
AT(naru_agent_host, folder_new, 32);
AT(naru_agent_host, file_create, 40);
AT(naru_agent_host, stopped, 48);

GROWS(naru_agent, 48);
AT(naru_agent, struct_size, 0);
AT(naru_agent, abi_major, 4);
AT(naru_agent, abi_minor, 6);
AT(naru_agent, name, 8);
AT(naru_agent, version, 16);
AT(naru_agent, model_open, 24);
AT(naru_agent, model_close, 32);
AT(naru_agent, act, 40);

SIZE(naru_waiting, 64);
AT(naru_waiting, queued_ns, 0);
AT(naru_waiting, deadline_ns, 8);
AT(naru_waiting, bytes, 16);
AT(naru_waiting, elements, 24);
AT(naru_waiting, shape_key, 32);
AT(naru_waiting, options, 40);
AT(naru_waiting, n_options, 48);
AT(naru_waiting, rows, 52);
AT(naru_waiting, level, 56);
AT(naru_waiting, reserved, 60);

GROWS(naru_window, 48);
AT(naru_window, struct_size, 0);
AT(naru_window, n, 4);
AT(naru_window, requests, 8);
AT(naru_window, now_ns, 16);
AT(naru_window, max_rows, 24);
AT(naru_window, flags, 32);
AT(naru_window, default_n, 36);
AT(naru_window, default_wait_until_ns, 40);

GROWS(naru_choice, 24);
AT(naru_choice, struct_size, 0);
AT(naru_choice, n, 4);
AT(naru_choice, wait_until_ns, 8);
AT(naru_choice, skip, 16);

GROWS(naru_batching_args, 32);
AT(naru_batching_args, struct_size, 0);
AT(naru_batching_args, n_options, 4);
AT(naru_batching_args, options, 8);
AT(naru_batching_args, model, 16);
AT(naru_batching_args, max_rows, 24);

GROWS(naru_batching, 48);
AT(naru_batching, struct_size, 0);
AT(naru_batching, abi_major, 4);
AT(naru_batching, abi_minor, 6);
AT(naru_batching, name, 8);
AT(naru_batching, version, 16);
AT(naru_batching, model_open, 24);
AT(naru_batching, model_close, 32);
AT(naru_batching, plan, 40);
