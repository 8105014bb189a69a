--- KS_TICK: whether a trigger on a schedule is due; if so, its next time is set.
-- ARGV[1] trigger        its name
-- ARGV[2] consumer       the executor: it must lead the trigger on this node
-- Returns: milliseconds until it is due; 0: it is due now; -1: another executor leads it
-- Errors: BADARG NOTRIGGER TRYAGAIN
-- Flags: allow-cross-slot-keys

local KEEP_MS = 86400000

local function KS_TICK(_, ARGV)
  local name, consumer = ARGV[1], ARGV[2]
  if not consumer or ARGV[3] then
    raise('BADARG', 'KS_TICK is called by executors only')
  end
  local own = node.keys()
  local record = triggers.get(own, name)
  if record.on ~= 'schedule' or not record.every then
    raise('BADARG', "trigger '" .. args.printable(name) .. "' is on no schedule")
  end
  if redis.call('GET', own.lead .. name) ~= consumer then
    return -1
  end
  local now, every = node.now_ms(), record.every
  local due = args.int(redis.call('GET', own.due .. name) or '')
  local wait
  if not due or due > now + every then
    due, wait = now + every, every -- new, or set to shorter times
  elseif due > now then
    return due - now
  else
    -- Times that nobody served are left out.
    due, wait = due + every * (math.floor((now - due) / every) + 1), 0
  end
  redis.call('SET', own.due .. name, ('%.0f'):format(due), 'PXAT', ('%.0f'):format(due + KEEP_MS))
  return wait
end
