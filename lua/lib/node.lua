--- @requires keys guard
-- Which node this is, and the names of its own keys. Kept in a local, since CLUSTER SLOTS costs too much per job, and
-- found again when the slot of the tag has moved away.

local node = {}
local own

local function find()
  local id = redis.pcall('CLUSTER', 'MYID')
  if type(id) == 'table' then
    own = keys.of_node('0')
    own.clustered = false
    return own
  end
  local lowest
  for _, range in ipairs(redis.call('CLUSTER', 'SLOTS')) do
    if range[3][3] == id and (not lowest or range[1] < lowest) then
      lowest = range[1]
    end
  end
  if not lowest then
    raise('TRYAGAIN', 'this node owns no slot yet: send the call to another node, or again later')
  end
  own = keys.of_node(keys.slot_tag(lowest))
  own.clustered = true
  return own
end

-- The node's keys; on a cluster only after a look that their slot is still here.
function node.keys()
  if not own then
    return find()
  end
  if own.clustered then
    local here = redis.pcall('EXISTS', own.catalog)
    if type(here) == 'table' then
      return find()
    end
  end
  return own
end

function node.now_ms()
  local time = redis.call('TIME')
  local ms = time[1] * 1000 + time[2] / 1000
  return ms - ms % 1
end

local counter = 0

-- An id that no other call on this node gets. TIME alone stands still during a call, on Valkey even during a transaction.
function node.unique()
  local time = redis.call('TIME')
  counter = (counter + 1) % 1000000
  return string.format('%x%05x%05x', tonumber(time[1]), tonumber(time[2]), counter)
end
