--- @requires keys pace
-- How many jobs of a model wait or run on a device queue, in all its versions and priorities: only for models that have a bound
-- (AI_LIMITSET). A job that is counted has a mark in its header, so that nobody else need look when it ends.

local counted = {}

function counted.name(own, uid, device)
  return own.queued .. uid .. ':' .. (string.match(device, '^[^!]+'))
end

-- Jobs and their bytes.
function counted.look(name)
  local found = redis.call('HMGET', name, 'jobs', 'bytes')
  return tonumber(found[1] or 0) or 0, tonumber(found[2] or 0) or 0
end

-- One more. The counter goes with the last of its jobs, or when they must all have ended: so it cannot be wrong for ever.
function counted.add(name, bytes, expires)
  local jobs = redis.call('HINCRBY', name, 'jobs', '1')
  if bytes > 0 then
    redis.call('HINCRBY', name, 'bytes', ('%.0f'):format(bytes))
  end
  if jobs == 1 then
    redis.call('PEXPIREAT', name, ('%.0f'):format(expires))
  else
    redis.call('PEXPIREAT', name, ('%.0f'):format(expires), 'GT')
  end
end

-- So many have ended.
function counted.take(name, jobs, bytes, now)
  if now then
    pace.note(name, jobs, now)
  end
  local left = redis.pcall('HINCRBY', name, 'jobs', ('%.0f'):format(-jobs))
  if type(left) ~= 'number' then
    return -- somebody has spoilt it
  end
  if left <= 0 then
    redis.pcall('UNLINK', name)
  elseif bytes > 0 then
    redis.pcall('HINCRBY', name, 'bytes', ('%.0f'):format(-bytes))
  end
end

function counted.forget(name)
  redis.call('UNLINK', name)
end
