--- @requires guard args keys node jobs bounds counted pace
-- Whether there is room for one more job: the bounds of the node's queues, and those of models that have some (AI_LIMITSET).

local room = {}

room.MAX_JOBS = 10000 -- in a queue, where nothing else is set
room.MAX_BYTES = 1073741824
local KEPT_MS = 1000
local SHARE = 16 -- who is refused shall come again when this part of the bound is free, most likely

-- What is set for the node, as long as that may be believed. AI_LIMITSET on this node makes it forgotten at once; after a
-- failover or a FLUSHALL it is right again soon.
local kept, kept_of, kept_at = nil, nil, 0

local function limits_of(own)
  local text = redis.pcall('GET', own.limits)
  if type(text) == 'table' and not string.find(text.err, 'WRONGTYPE', 1, true) then
    error(text, 0)
  end
  local found = type(text) == 'string' and bounds.decode(text) or {}
  return {
    jobs = found.jobs or room.MAX_JOBS, bytes = found.bytes or room.MAX_BYTES, rate = found.rate, userrate = found.userrate,
    rated = found.rated,
  }
end

function room.limits(own, now)
  if kept_of == own and now - kept_at < KEPT_MS and now >= kept_at then
    return kept
  end
  kept, kept_of, kept_at = limits_of(own), own, now
  return kept
end

-- As AI_LIMITGET shows them.
function room.read(own)
  return limits_of(own)
end

function room.forget()
  kept_of = nil
end

-- Refuse: `what` is full; `name` is what its pace is known by, `most` jobs may be there.
local function busy(what, advice, name, most, now)
  local share = most / SHARE
  local ms = pace.ms(name, math.ceil(share), now)
  raise('BUSY', what .. ': ' .. advice .. ', or come again; retry in ' .. ('%.0f'):format(ms) .. ' ms')
end

local function all_empty(own, device)
  local bare = string.match(device, '^[^!]+')
  for _, priority in ipairs({ '', '!H', '!L' }) do
    if redis.call('XLEN', own.jobs .. bare .. priority) > 0 then
      return false
    end
  end
  return true
end

-- The bounds of the model. Returns the bytes that the job counts there.
local function check_model(own, device, record, size, now)
  local most = record.limits
  local name = counted.name(own, record.uid, device)
  local queued, held = counted.look(name)
  local max_jobs, max_bytes = most.jobs or 0, most.bytes or 0
  if max_bytes > 0 and size > max_bytes then
    raise('TOOBIG', 'inputs of ' .. size .. " bytes: jobs of model '" .. record.title .. "' may hold " .. max_bytes .. ' bytes together')
  end
  if queued ~= 0 and (queued < 0 or (max_jobs > 0 and queued >= max_jobs) or (max_bytes > 0 and held + size > max_bytes)) and all_empty(own, device) then
    counted.forget(name) -- jobs went in ways that nobody could take note of
    queued, held = 0, 0
  end
  local advice = 'add executors, or raise it (AI_LIMITSET)'
  if max_jobs > 0 and queued >= max_jobs then
    busy("model '" .. record.title .. "' has " .. queued .. ' jobs in queue ' .. device .. ', its limit', advice, name, max_jobs, now)
  end
  if max_bytes > 0 and held + size > max_bytes then
    busy("jobs of model '" .. record.title .. "' hold " .. held .. ' bytes in queue ' .. device .. ', their limit is ' .. max_bytes,
      advice, name, queued, now)
  end
  return max_bytes > 0 and size or 0
end

-- There is room for one more job, of `size` bytes, `bytes` of which count in its queue. Returns what the job counts for its
-- model, if it does: its mark.
function room.check(own, limits, device, record, bytes, size, now)
  local stream = own.jobs .. device
  local queued = redis.call('XLEN', stream)
  if queued >= limits.jobs and limits.jobs > 0 then
    busy('queue ' .. device .. ' holds ' .. queued .. ' jobs, its limit', 'add executors', stream, limits.jobs, now)
  end
  if bytes > 0 then
    local held = tonumber(redis.call('GET', own.bytes .. device) or 0) or 0
    if queued == 0 and held ~= 0 then
      redis.call('UNLINK', own.bytes .. device)
      held = 0
    end
    if held + bytes > limits.bytes and limits.bytes > 0 then
      if bytes > limits.bytes then
        raise('TOOBIG', 'inputs of ' .. bytes .. ' bytes: the jobs of queue ' .. device .. ' may hold ' .. limits.bytes .. ' bytes together')
      end
      busy('queue ' .. device .. ' holds ' .. held .. ' bytes, its limit is ' .. limits.bytes, 'add executors', stream, queued, now)
    end
  end
  local most = record.limits
  if most and most.counted then
    return check_model(own, device, record, size, now)
  end
end
