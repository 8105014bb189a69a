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

-- The keys of another tag whose slot is on this node now: what was queued under it is still to be run.
local others, others_count = {}, 0

local function of_tag(tag)
  local names = others[tag]
  if not names then
    if others_count >= 256 then
      others, others_count = {}, 0
    end
    names = keys.of_node(tag)
    others[tag] = names
    others_count = others_count + 1
  end
  return names
end

-- The queue that a word means, DEVICE, DEVICE!H or DEVICE!L for those that go before and behind the others, each with @tag
-- where it belongs to another tag than the node's: the keys of its tag, its stream, and the word without the tag.
function node.queue(word)
  local own = node.keys()
  local at = string.find(word, '@', 1, true)
  if not at then
    return own, own.jobs .. word, word
  end
  local device, tag = string.sub(word, 1, at - 1), string.sub(word, at + 1)
  if tag ~= own.tag then
    local clustered = own.clustered
    own = of_tag(tag)
    own.clustered = clustered
    if clustered then
      redis.call('EXISTS', own.catalog) -- is it here?
    end
  end
  return own, own.jobs .. device, device
end

-- The word for a queue in the id of a job: on a cluster with the tag, so that it can be found again.
function node.word(own, device)
  return own.clustered and device .. '@' .. own.tag or device
end

-- Whether a key is in a slot that this node serves now.
function node.is_local(key)
  return type(redis.pcall('EXISTS', key)) == 'number'
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
