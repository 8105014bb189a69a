--- AI_SCRIPTGET: settings and source of a script's version.
-- KEYS[1] key            the script
-- ARGV[1..] options      [VERSION n] [META] [SOURCE]; neither META nor SOURCE: both
-- Returns: META: the flat list of docs/protocol.md; SOURCE alone: the text, empty where the functions are the operator's
-- Errors: BADARG NOMODEL WRONGTYPE UPLOADLOST
-- Flags: no-writes allow-cross-slot-keys

local function scriptget_source(key, uid, version)
  if models.get(key, version, 'backend')[1] == 'FUNCTION' then
    return ''
  end
  local parts = {}
  for i, name in ipairs(models.chunks(key, uid, version)) do
    parts[i] = redis.call('GET', name) or raise('UPLOADLOST', ("the source of '%s@%s' has gone, deleted, evicted or expired: store the script again")
      :format(args.printable(key), version))
  end
  return table.concat(parts)
end

local function AI_SCRIPTGET(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_SCRIPTGET': give the script's name as the one key")
  end
  local meta, source, asked = false, false, nil
  local i = 1
  while ARGV[i] do
    local word = string.upper(ARGV[i])
    if word == 'META' then
      meta = true
    elseif word == 'SOURCE' then
      source = true
    elseif word == 'VERSION' then
      i = i + 1
      asked = ARGV[i] or raise('BADARG', 'VERSION needs a number')
    else
      raise('BADARG', "unsupported subcommand '" .. args.printable(ARGV[i]) .. "': META, SOURCE or VERSION n")
    end
    i = i + 1
  end
  local uid = kinds.uid(key, true, 'AI_MODELGET')
  local version = models.version(key, asked)
  if source and not meta then
    return scriptget_source(key, uid, version)
  end
  local got = models.get(key, version, 'device', 'tag', 'options')
  local reply = { 'device', got[1], 'tag', got[2], 'Entry Points', scripts.entry_points(got[3]) }
  if source or not meta then
    reply[7] = 'source'
    reply[8] = scriptget_source(key, uid, version)
  end
  return reply
end
