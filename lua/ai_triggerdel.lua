--- AI_TRIGGERDEL: delete a trigger; what it has started ends without a result.
-- KEYS[1] key            the trigger
-- Returns: OK
-- Errors: BADARG NOTRIGGER WRONGTYPE
-- Flags: allow-oom allow-cross-slot-keys

local function AI_TRIGGERDEL(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] or ARGV[1] then
    raise('BADARG', "wrong number of arguments for 'AI_TRIGGERDEL': give the trigger's name as the one key")
  end
  local own = node.keys()
  if not triggers.uid(key) then
    catalog.drop_trigger(own, key) -- it went by a plain DEL
  end
  triggers.existing(key)
  catalog.drop_trigger(own, key)
  redis.call('UNLINK', key)
  return redis.status_reply('OK')
end
