--- AI_TRIGGERPAUSE: let a trigger rest, or go on; what happens meanwhile is not made up for, but for entries of a stream.
-- KEYS[1] key            the trigger
-- ARGV[1] word           ON: it rests; OFF: it goes on
-- Returns: OK
-- Errors: BADARG NOTRIGGER WRONGTYPE
-- Flags: allow-oom allow-cross-slot-keys

local function AI_TRIGGERPAUSE(KEYS, ARGV)
  local key, word = KEYS[1], args.keyword(ARGV[1] or '')
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TRIGGERPAUSE': give the trigger's name as the one key")
  end
  if (word ~= 'ON' and word ~= 'OFF') or ARGV[2] then
    raise('BADARG', 'AI_TRIGGERPAUSE takes ON or OFF')
  end
  triggers.existing(key)
  if not triggers.encode(key) then
    raise('WRONGTYPE', "trigger '" .. args.printable(key) .. "' is damaged: set it again")
  end
  redis.call('HSET', key, 'state', word == 'ON' and 'paused' or 'active')
  -- Said in any case: a node where it failed may have let it rest by itself (ONERROR PAUSE).
  catalog.update_trigger(node.keys(), key)
  return redis.status_reply('OK')
end
