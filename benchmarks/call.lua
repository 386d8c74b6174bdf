-- A script for wrk. It sends the first argument with POST again and again. An answer is wrong if its status is not 200 or
-- its body is not the second argument. The summary goes to stdout as one line of JSON.

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   expected = args[2]
   wrong = 0
   wrk.method = "POST"
   wrk.body = args[1]
   wrk.headers["Content-Type"] = args[3]
   request_bytes = wrk.format()
end

function request()
   return request_bytes
end

function response(status, headers, body)
   if status ~= 200 or body ~= expected then
      wrong = wrong + 1
   end
end

function done(summary, latency, requests)
   local wrong_in_all = 0
   for _, thread in ipairs(threads) do
      wrong_in_all = wrong_in_all + thread:get("wrong")
   end
   local errors = summary.errors
   io.write(string.format(
      '\n{"calls": %d, "elapsed_s": %.6f, "wrong": %d, "errors": %d, "median_ms": %.6f, "p99_ms": %.6f, "max_ms": %.6f}\n',
      summary.requests, summary.duration / 1e6, wrong_in_all,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
