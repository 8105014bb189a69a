--- AI_INFO: what a model or a script is and how often it ran on this node.
-- KEYS[1] key            the model or script
-- ARGV[1..] options      [VERSION n] [RESETSTAT]
-- Returns: key, type, backend, device, tag, duration (us), samples, calls, errors as a flat list; RESETSTAT: OK
-- Errors: BADARG NOMODEL WRONGTYPE
-- Flags: allow-oom allow-cross-slot-keys

local function AI_INFO(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_INFO': give the model's name as the one key")
  end
  local asked, reset, i = nil, false, 1
  while ARGV[i] do
    local word = string.upper(ARGV[i])
    if word == 'RESETSTAT' then
      reset = true
    elseif word == 'VERSION' and ARGV[i + 1] then
      i = i + 1
      asked = ARGV[i]
    else
      raise('BADARG', "unsupported subcommand '" .. args.printable(ARGV[i]) .. "': RESETSTAT or VERSION n")
    end
    i = i + 1
  end
  local uid = models.existing_uid(key)
  local version = models.version(key, asked)
  local stats = node.keys().stats .. uid .. '-' .. version
  if reset then
    redis.call('UNLINK', stats)
    return redis.status_reply('OK')
  end
  -- Counters that somebody spoilt are none: a nil would cut the reply short.
  local function counter(text)
    return args.int(text or '') or 0
  end
  local about = models.get(key, version, 'backend', 'device', 'tag')
  local got = redis.call('HMGET', stats, 'duration', 'samples', 'calls', 'errors')
  local script = kinds.is_script(key)
  return {
    'key', key, 'type', script and 'SCRIPT' or 'MODEL', 'backend', about[1] or '', 'device', about[2] or '', 'tag', about[3] or '', 'duration', counter(got[1]),
    'samples', script and -1 or counter(got[2]), 'calls', counter(got[3]), 'errors', counter(got[4]),
  }
end
