--- AI_SCRIPTDEL: delete a script, or one version of it; jobs already queued still run.
-- KEYS[1] key            the script
-- ARGV[1..] options      [VERSION n]
-- Returns: OK
-- Errors: BADARG NOMODEL WRONGTYPE
-- Flags: allow-oom allow-cross-slot-keys

local function AI_SCRIPTDEL(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_SCRIPTDEL': give the script's name as the one key")
  end
  local asked = kinds.asked(ARGV)
  local own = node.keys()
  if not asked and not models.uid(key) then
    catalog.forget(own, key)
  end
  kinds.delete(own, key, kinds.uid(key, true, 'AI_MODELDEL'), asked)
  return redis.status_reply('OK')
end
