--- AI_TENSORSET: write a tensor that is given as bytes or as decimal numbers, and start the runs of triggers ON SET.
-- KEYS[1] key            the tensor; what is there must be a tensor too, and goes with its TTL
-- ARGV[1] dtype          one of the names of the dtype table
-- ARGV[2..] arguments    dim... [BLOB bytes | VALUES value...]; without data zeros or empty strings
-- Returns: OK
-- Errors: BADARG BADVALUE TOOBIG WRONGTYPE BUSY OOM NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local function tensorset_replaceable(key)
  local start = redis.pcall('GETRANGE', key, 0, 5)
  if type(start) == 'table' then
    if start.err:find('WRONGTYPE', 1, true) then
      raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds another type: delete it or name another")
    end
    error(start, 0)
  end
  if not npy.is_tensor(start) and (start ~= '' or redis.call('EXISTS', key) == 1) then
    raise('WRONGTYPE', "key '" .. args.printable(key)
      .. "' holds a string that is not a tensor: delete it or name another")
  end
end

local function AI_TENSORSET(KEYS, ARGV)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TENSORSET': give the tensor's key as the one key")
  end
  local header, data = tensorset.read(ARGV, 1)
  tensorset_replaceable(key)
  local own = node.keys()
  local list = onset.all(own)
  redis.call('SET', key, header .. data)
  if list then
    onset.changed(own, list, key, {}, true)
  end
  return redis.status_reply('OK')
end
