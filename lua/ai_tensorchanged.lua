--- AI_TENSORCHANGED: start the runs of the triggers ON SET that a tensor fires which was written by other means than AI_TENSORSET.
-- KEYS[1] key            the tensor; to be sent behind the SET of it in one transaction
-- ARGV[1..] options      [ID client seq]: sent again with the same number it starts nothing that it has started
-- Returns: how many were started
-- Errors: BADARG BUSY OOM NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local NUMBER_MS = 30000 -- as the timeout of a request that names none: so long, and a minute, is its number remembered

local function tensorchanged_number(key, argv)
  local client, seq = argv[2] or '', args.int(argv[3] or '', 0, 9007199254740991)
  if args.keyword(argv[1]) ~= 'ID' or not seq or argv[4] or #client > 64 or not string.find(client, '^%w+$') then
    raise('BADARG', 'AI_TENSORCHANGED takes the key, and ID with a client id (letters and digits, at most 64) and a number')
  end
  return { client = client, seq = seq, timeout = NUMBER_MS, key = key }
end

local function AI_TENSORCHANGED(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TENSORCHANGED': give the tensor's key as the one key")
  end
  local request = ARGV[1] and tensorchanged_number(key, ARGV)
  if not redis.acl_check_cmd('SET', key, '') then
    raise('NOPERM', "this user may not SET key '" .. args.printable(key) .. "'")
  end
  local own = node.keys()
  local list = onset.all(own)
  if not list or (request and seen.taken(own, request)) then
    return 0
  end
  local started = onset.changed(own, list, key, {}, true)
  if request and started > 0 then
    seen.take(own, request)
  end
  return started
end
