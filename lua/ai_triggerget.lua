--- AI_TRIGGERGET: what a trigger is.
-- KEYS[1] key            the trigger
-- Returns: flat list of its record: name, state, on, source, .., run; what is not set is left out
-- Errors: BADARG NOTRIGGER WRONGTYPE
-- Flags: no-writes allow-cross-slot-keys

local ORDER = {
  'state', 'on', 'source', 'sharded', 'notify', 'group', 'from', 'every', 'keys', 'members', 'channel', 'results', 'maxlen', 'coalesce',
  'rate', 'inflight', 'ttl', 'onerror', 'created', 'run',
}
local OF_STREAMS = { group = true, from = true }

local function AI_TRIGGERGET(KEYS, _)
  local key = KEYS[1]
  if not key or KEYS[2] then
    raise('BADARG', "wrong number of keys for 'AI_TRIGGERGET': give the trigger's name as the one key")
  end
  triggers.existing(key)
  local raw = triggers.encode(key)
  local record = raw and triggers.decode(raw)
  if not record then
    raise('WRONGTYPE', "trigger '" .. args.printable(key) .. "' is damaged: set it again")
  end
  local reply = { 'name', key }
  for _, field in ipairs(ORDER) do
    local value = record[field]
    if value ~= nil and not (OF_STREAMS[field] and record.on ~= 'stream') then
      reply[#reply + 1] = field
      reply[#reply + 1] = value == true and 1 or value
    end
  end
  return reply
end
