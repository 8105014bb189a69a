--- AI_NODE: what this node is, and how busy: for clients that choose one, and to see whether its Lua works.
-- Returns: a flat list: tag, of its own keys; cluster, 1 if it belongs to one; now, its time in ms; library, version;
--   complete, 1 if its catalog has all models of the cluster; devices, [[name, live executors, jobs queued, age of the oldest
--   in ms or -1 (also for callers who may not read the queue)]...]
-- Errors: BADARG TRYAGAIN
-- Flags: no-writes allow-cross-slot-keys

local function node_devices(own)
  local counts, order = {}, {}
  for _, name in ipairs(redis.call('ZRANGE', own.executors, '0', '-1')) do
    local raw = redis.pcall('GET', own.executor .. name)
    local ok, info = pcall(cjson.decode, type(raw) == 'string' and raw or '')
    local devices = ok and type(info) == 'table' and info.devices
    for _, device in ipairs(type(devices) == 'table' and devices or {}) do
      if type(device) == 'string' and jobs.is_device(device) then
        if not counts[device] then
          counts[device] = 0
          order[#order + 1] = device
        end
        counts[device] = counts[device] + 1
      end
    end
  end
  return counts, order
end

local function node_queue(own, device, now)
  local queued, oldest = 0, -1
  for _, priority in ipairs({ '', '!H', '!L' }) do
    local stream = own.jobs .. device .. priority
    local length = redis.pcall('XLEN', stream)
    if type(length) == 'number' and length > 0 then
      queued = queued + length
      local first = jobs.may_read(stream) and redis.call('XRANGE', stream, '-', '+', 'COUNT', '1')[1]
      local ms = first and tonumber(string.match(first[1], '^%d+'))
      oldest = ms and math.max(oldest, now - ms) or oldest
    end
  end
  return queued, oldest
end

local function AI_NODE(KEYS, ARGV)
  if KEYS[1] or ARGV[1] then
    raise('BADARG', 'AI_NODE takes no keys and no arguments')
  end
  local own = node.keys()
  local now = node.now_ms()
  local counts, order = node_devices(own)
  local devices = {}
  for i, device in ipairs(order) do
    local queued, oldest = node_queue(own, device, now)
    devices[i] = { device, counts[device], queued, oldest }
  end
  local complete = not own.clustered or redis.call('HEXISTS', own.catalog, catalog.COMPLETE) == 1
  return {
    'tag', own.tag, 'cluster', own.clustered and 1 or 0, 'now', now, 'library', tonumber(release.number),
    'complete', complete and 1 or 0, 'devices', devices,
  }
end
