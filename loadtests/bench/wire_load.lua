-- The load of wire_speed.py over HTTP: the files DIRECTORY/0 to DIRECTORY/COUNT-1 in turns.
--
--   wrk -s wire_load.lua URL -- DIRECTORY COUNT 'Content-Type: application/json' ...

local requests, count, turn = {}, 0, 0

function init(arguments)
   count = tonumber(arguments[2])
   for index = 3, #arguments do
      local name, value = arguments[index]:match("^([^:]+): (.*)$")
      wrk.headers[name] = value
   end
   for number = 1, count do
      local file = assert(io.open(arguments[1] .. "/" .. (number - 1), "rb"))
      requests[number] = wrk.format("POST", nil, nil, file:read("*a"))
      file:close()
   end
end

function request()
   turn = turn % count + 1
   return requests[turn]
end

function done(summary, latency)
   local errors = summary.errors
   print(string.format(
      '{"seconds": %f, "answered": %d, "refused": %d, "lost": %d, "p50_us": %d, "p99_us": %d}',
      summary.duration / 1e6, summary.requests, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)
   ))
end
