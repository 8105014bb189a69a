--- @requires guard args node catalog models
-- Models and scripts share one layout of keys, and each is asked for by functions of its own.

local kinds = {}

local SCRIPTS = { SCRIPT = true, FUNCTION = true }

-- Is what is at key, a model key, a script?
function kinds.is_script(key)
  local version = catalog.bare(key)
  return version ~= nil and SCRIPTS[redis.call('HGET', key, version .. ':backend') or ''] == true
end

-- A version of this backend may be added to what is at key.
function kinds.check_store(key, backend)
  local script = kinds.is_script(key)
  if script ~= (SCRIPTS[backend] == true) then
    raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds a " .. (script and 'script' or 'model')
      .. ': a ' .. (script and 'model' or 'script') .. ' needs another name, or delete it first')
  end
end

-- The uid of the model at key, or with `script` of the script; `instead` is the function for the other kind.
function kinds.uid(key, script, instead)
  local uid
  if script then
    uid = models.uid(key)
    if not uid then
      raise('NOMODEL', "script key is empty: there is no script '" .. args.printable(key) .. "', store it with AI_SCRIPTSTORE, or list them"
        .. ' with AI_SCRIPTSCAN')
    end
  else
    uid = models.existing_uid(key)
  end
  if kinds.is_script(key) ~= script then
    raise('WRONGTYPE', "key '" .. args.printable(key) .. "' holds a " .. (script and 'model' or 'script') .. ': that is for ' .. instead)
  end
  return uid
end

-- Delete what is at key, or the version asked for; jobs already queued still run. An own one, of this node.
function kinds.delete(own, key, uid, asked)
  local last = tonumber(redis.call('HGET', key, 'last'))
  if asked then
    local version = models.version(key, asked)
    models.remove(own, key, uid, version)
    for n = last, 1, -1 do
      if redis.call('HEXISTS', key, n .. ':state') == 1 then
        models.choose_default(key)
        catalog.update(own, key, version)
        return
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
end

-- What may follow the key of AI_MODELDEL and AI_SCRIPTDEL: nothing, or VERSION n.
function kinds.asked(argv)
  local word, asked = argv[1], argv[2]
  if word and (string.upper(word) ~= 'VERSION' or not asked or argv[3]) then
    raise('BADARG', 'only VERSION n may follow the key')
  end
  return asked
end

local function kinds_pairs(own, flat, script)
  local names, reply = {}, {}
  for i = 1, #flat, 2 do
    names[#names + 1] = flat[i]
  end
  if names[1] then
    for n, raw in ipairs(redis.call('HMGET', own.catalog, unpack(names))) do
      -- Within texts of a record quotes are escaped: there this is nowhere else.
      if (raw and string.find(raw, '"kind":"script"', 1, true) ~= nil or false) == script then
        reply[#reply + 1] = { names[n], flat[2 * n] }
      end
    end
  end
  return reply
end

-- The reply of AI_MODELSCAN and AI_SCRIPTSCAN, which is called `name`.
function kinds.scan(argv, script, name)
  local own = node.keys()
  local cursor, word, amount = argv[1], argv[2], argv[3]
  if not cursor then
    local count = redis.call('HLEN', own.models)
    if count > 1000 then
      raise('SCANLIMIT', count .. ' models and scripts: call ' .. name .. ' with a cursor, beginning with 0')
    end
    return kinds_pairs(own, redis.call('HGETALL', own.models), script)
  end
  local count = word and args.int(amount or '', 1, 1000) or 100
  if not string.find(cursor, '^%d+$') or #cursor > 20 or (word and string.upper(word) ~= 'COUNT')
    or (word and not args.int(amount or '', 1, 1000)) or argv[4] then
    raise('BADARG', name .. ' takes: [cursor [COUNT 1..1000]]')
  end
  local page = redis.call('HSCAN', own.models, cursor, 'COUNT', count)
  return { page[1], kinds_pairs(own, page[2], script) }
end
