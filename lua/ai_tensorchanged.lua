--- AI_TENSORCHANGED: start the runs of the triggers ON SET that a tensor fires which was written by other means than AI_TENSORSET.
-- KEYS[1] key            the tensor; to be sent behind the SET of it in one transaction
-- Returns: how many were started
-- Errors: BADARG BUSY OOM NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local function AI_TENSORCHANGED(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] or ARGV[1] then
    raise('BADARG', "wrong number of arguments for 'AI_TENSORCHANGED': give the tensor's key as the one key")
  end
  if not redis.acl_check_cmd('SET', key, '') then
    raise('NOPERM', "this user may not SET key '" .. args.printable(key) .. "'")
  end
  local own = node.keys()
  local list = onset.all(own)
  return list and onset.changed(own, list, key, {}, true) or 0
end
