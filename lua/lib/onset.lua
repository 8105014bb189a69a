--- @requires guard args keys node triggers events firing
-- Triggers ON SET: a tensor was written, whoever is the caller of the function that says so.

local onset = {}

local STARTED_MS = 60000 -- how long a notification of a write that has started its runs may be on its way

-- The active ones, decoded, as of a revision of theirs. Kept while it holds, since each write asks for them; and when the tag of
-- the node has changed, until an executor has told it of all triggers anew.
local listed, listed_rev, listed_tag = {}, nil, nil

local function onset_read(own)
  local list, flat = {}, redis.call('HGETALL', own.onset)
  for i = 1, #flat, 2 do
    local record = flat[i] ~= triggers.REV and triggers.decode(flat[i + 1])
    if record and record.on == 'set' and record.state == 'active' then
      list[#list + 1] = record
      triggers.remember(record)
    end
  end
  return list
end

-- Those of this node; nil: none. A caller who may not know is refused, before it has written anything.
function onset.all(own)
  local rev = redis.call('HGET', own.onset, triggers.REV)
  if own.clustered and listed[1] and own.tag ~= listed_tag and triggers.incomplete(own) then
    return listed
  elseif not rev then
    return nil
  end
  if rev ~= listed_rev or own.tag ~= listed_tag then
    listed, listed_rev, listed_tag = onset_read(own), rev, own.tag
  end
  return listed[1] and listed
end

-- A notification of this write will come: it starts no run.
local function onset_mark(record, key)
  local name = keys.started(key, record.key)
  redis.call('INCR', name)
  redis.call('PEXPIRE', name, STARTED_MS)
end

-- Start the runs of those in `list` (onset.all) that a key fires, which was written just now; `chain`: triggers that led to it. Where
-- a start is refused for a while (`strict`) none of them is, and the error is raised. Returns how many there are.
function onset.changed(own, list, key, chain, strict)
  if string.sub(key, 1, 4) == 'ks:{' then
    return 0
  end
  local started, later, marks, told = {}, {}, {}, {}
  for _, record in ipairs(list) do
    local vars = events.captures(record, key)
    if vars then
      local status, text = firing.start(own, record, vars, key, chain, later)
      if status == 'FIRED' then
        started[#started + 1] = { record, text }
      elseif status == 'REFUSED' and strict then
        for _, one in ipairs(started) do
          firing.undo(own, one[1], one[2])
        end
        local code, rest = string.match(text, '^(%u+) (.*)$')
        raise(code, "the tensor '" .. args.printable(key) .. "' is written, but trigger '" .. args.printable(record.key)
          .. "' could not start its run: send the call again: " .. rest)
      elseif status == 'REFUSED' or status == 'ERROR' then
        told[#told + 1] = { record, text }
      else
        told[#told + 1] = { record }
      end
      if record.notify then
        marks[#marks + 1] = record
      end
    end
  end
  for _, record in ipairs(marks) do
    onset_mark(record, key)
  end
  for _, one in ipairs(told) do
    if one[2] then
      events.failed(own, one[1], key, one[2])
    else
      events.count(own, one[1].key, 'dropped')
    end
  end
  firing.settle(later)
  return #started
end
