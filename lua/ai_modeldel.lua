--- AI_MODELDEL: delete a model, or one version of it; jobs already queued still run.
-- KEYS[1] key            the model
-- ARGV[1..] options      [VERSION n]
-- Returns: OK
-- Errors: BADARG NOMODEL WRONGTYPE
-- Flags: allow-oom allow-cross-slot-keys

local function AI_MODELDEL(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_MODELDEL': give the model's name as the one key")
  end
  local word, asked = ARGV[1], ARGV[2]
  if word and (string.upper(word) ~= 'VERSION' or not asked or ARGV[3]) then
    raise('BADARG', 'only VERSION n may follow the model key')
  end
  local own = node.keys()
  if not asked and not models.uid(key) then
    catalog.forget(own, key)
  end
  local uid = models.existing_uid(key)
  local last = tonumber(redis.call('HGET', key, 'last'))
  if asked then
    local version = models.version(key, asked)
    models.remove(own, key, uid, version)
    for n = last, 1, -1 do
      if redis.call('HEXISTS', key, n .. ':state') == 1 then
        models.choose_default(key)
        catalog.update(own, key, version)
        return redis.status_reply('OK')
      end
    end
  else
    for n = 1, last do
      if redis.call('HEXISTS', key, n .. ':state') == 1 then
        models.remove(own, key, uid, tostring(n), true)
      end
    end
  end
  catalog.drop(own, key, last)
  redis.call('UNLINK', key)
  return redis.status_reply('OK')
end
