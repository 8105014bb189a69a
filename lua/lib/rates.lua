--- @requires guard args keys node
-- Rates (AI_LIMITSET): at most n jobs in a window of so many ms. A window begins with the first job after the last one was
-- over; its counter is a key that lives exactly as long, so that it is as safe as all that Redis keeps. Functions run one
-- after the other: what is looked at here is still so when it is taken.

local rates = {}

local function look(found, name, rate, what)
  local taken = redis.call('GET', name)
  local count = tonumber(taken or 0) or rate[1]
  local wait
  if count >= rate[1] then
    -- A key of that age is still there in its last millisecond.
    wait = redis.call('PTTL', name) + 1
    if wait <= 0 then
      redis.call('UNLINK', name) -- not made here: it would stay for ever
      wait, taken = nil, nil
    end
  end
  if wait and (not found.wait or wait > found.wait) then
    found.wait = wait
    found.why = what .. ' ' .. ('%.0f'):format(rate[1]) .. (rate[1] == 1 and ' job' or ' jobs') .. ' in ' .. ('%.0f'):format(rate[2]) .. ' ms'
  end
  found[#found + 1] = { name = name, per = not taken and rate[2] }
end

local function look_all(found, base, limits, what, request)
  if limits.rate then
    look(found, base, limits.rate, what .. ' takes')
  end
  if limits.userrate then
    if not request.user then
      raise('BADARG', what .. ' has a limit for each user (USERRATE): say with USER name on whose behalf the call is made')
    end
    look(found, base .. ':' .. request.user, limits.userrate, "user '" .. request.user .. "' may run, on " .. what .. ',')
  end
end

-- Whether the job may come now. Returns the permits that it needs, for rates.take once it is in its queue.
function rates.check(own, limits, record, request)
  local found = {}
  if limits.rated then
    look_all(found, own.rate .. 'node', limits, 'this node', request)
  end
  if record.limits and record.limits.rated then
    look_all(found, own.rate .. record.uid, record.limits, "model '" .. args.printable(record.key, 512) .. "'", request)
  end
  if found.wait then
    raise('BUSY', found.why .. ': come again, or raise it (AI_LIMITSET); retry in ' .. ('%.0f'):format(found.wait) .. ' ms')
  end
  return found
end

function rates.take(permits)
  for _, permit in ipairs(permits) do
    redis.call('INCR', permit.name)
    if permit.per then
      redis.call('PEXPIRE', permit.name, ('%.0f'):format(permit.per))
    end
  end
end
