--- KS_TRIGGERS: the triggers that executors of this node have to serve.
-- Returns: [[name, record]...]: those on channels, streams and schedules that hash to this node, and those ON SET with NOTIFY
-- Errors: BADARG TRYAGAIN
-- Flags: no-writes allow-cross-slot-keys

local function KS_TRIGGERS(KEYS, ARGV)
  if KEYS[1] or ARGV[1] then
    raise('BADARG', 'KS_TRIGGERS takes no keys and no arguments')
  end
  local own = node.keys()
  local flat = redis.call('HGETALL', own.triggers)
  local list = {}
  for i = 1, #flat, 2 do
    local record = triggers.decode(flat[i + 1])
    local place = record and triggers.place(record)
    if record and ((record.on == 'set' and record.notify == true) or (place and (not own.clustered or node.is_local(place)))) then
      list[#list + 1] = { flat[i], flat[i + 1] }
    end
  end
  return list
end
