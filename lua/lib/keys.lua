-- Names of keys: docs/protocol.md section 2. The only Lua file that formats one; tensorstore/keys.py is its twin.

local keys = {}

local ALPHABET = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-'
local crc_table

local function crc16(text)
  if not crc_table then
    crc_table = {}
    for byte = 0, 255 do
      local crc = bit.lshift(byte, 8)
      for _ = 1, 8 do
        crc = bit.lshift(crc, 1)
        if bit.band(crc, 0x10000) ~= 0 then
          crc = bit.bxor(crc, 0x1021)
        end
        crc = bit.band(crc, 0xffff)
      end
      crc_table[byte] = crc
    end
  end
  local crc = 0
  for i = 1, #text do
    local index = bit.bxor(bit.rshift(crc, 8), string.byte(text, i))
    crc = bit.band(bit.bxor(bit.lshift(crc, 8), crc_table[index]), 0xffff)
  end
  return crc
end

-- The first three-letter word whose slot it is. CRC16 is linear, so the last letter is looked up instead of tried.
function keys.slot_tag(slot)
  local last = {}
  for i = #ALPHABET, 1, -1 do
    local letter = string.sub(ALPHABET, i, i)
    last[crc16(letter) % 16384] = letter
  end
  for i = 1, #ALPHABET do
    local first = string.sub(ALPHABET, i, i)
    local one = crc16(first .. '\0\0')
    for j = 1, #ALPHABET do
      local second = string.sub(ALPHABET, j, j)
      local rest = bit.bxor(bit.bxor(one, crc16(second .. '\0')), slot) % 16384
      if last[rest] then
        return first .. second .. last[rest]
      end
    end
  end
end

function keys.tag(key)
  local open = string.find(key, '{', 1, true)
  if open then
    local close = string.find(key, '}', open + 1, true)
    if close and close > open + 1 then
      return string.sub(key, open + 1, close - 1)
    end
  end
  if key ~= '' and not string.find(key, '}', 1, true) then
    return key
  end
  return keys.slot_tag(crc16(key) % 16384)
end

local function private(key, kind)
  return 'ks:{' .. keys.tag(key) .. '}:' .. kind .. ':'
end

function keys.capture(key, id)
  return private(key, 'cap') .. id
end

-- Whether name is that of an output on its way to key, in the slot of key; tensorstore/keys.py forms it.
function keys.is_output(name, key)
  local front = private(key, 'out')
  return string.sub(name, 1, #front) == front
end

function keys.upload(key, id, i)
  return private(key, 'up') .. id .. ':' .. i
end

function keys.blob(key, uid, digest, i)
  return private(key, 'blob') .. uid .. ':' .. digest .. ':' .. i
end

function keys.gone(key, uid)
  return private(key, 'gone') .. uid
end

-- What says that a request with keys was accepted, in their slot: it goes where that goes.
function keys.seen(key, client, seq)
  return private(key, 'seen') .. client .. ':' .. ('%d'):format(seq)
end

-- What says that a job was taken over from another node, in the slot of the keys that it came for.
function keys.forwarded(key, origin)
  return private(key, 'fwd') .. origin
end

-- The entries of a stream for which a trigger has started runs, in the slot of the stream: its group knows of those of others.
-- What says that AI_TRIGGERSET made a trigger, and nobody by hand; whoever may write models cannot write it.
function keys.vouched(trigger)
  return private(trigger, 'vouch') .. trigger
end

function keys.fired(stream, trigger)
  return private(stream, 'fired') .. trigger
end

-- How many writes of a key have started a run of a trigger at once, so that their notifications need not.
function keys.started(key, trigger)
  return private(key, 'own') .. trigger .. ':' .. key
end

-- The channel for results of a trigger that names no other.
function keys.results(trigger)
  return 'ks:results:' .. trigger
end

-- The node tag and the trigger in the ticket of a run that the trigger has started; nil for other tickets.
function keys.of_event(ticket)
  return string.match(ticket, '^ks:{([^}]*)}:ev:(.+)$')
end

-- Whether two keys are in one slot.
function keys.together(one, other)
  local first, second = keys.tag(one), keys.tag(other)
  return first == second or crc16(first) % 16384 == crc16(second) % 16384
end

-- The node's own keys, formed once per tag.
function keys.of_node(tag)
  local base = 'ks:{' .. tag .. '}:'
  return {
    tag = tag,
    jobs = base .. 'jobs:',
    dead = base .. 'dead',
    died = base .. 'died:',
    catalog = base .. 'catalog',
    models = base .. 'models',
    revs = base .. 'revs',
    dropped = base .. 'dropped',
    stats = base .. 'stats:',
    bytes = base .. 'bytes:',
    held = base .. 'held:',
    limits = base .. 'limits',
    queued = base .. 'queued:',
    rate = base .. 'rate:',
    executors = base .. 'executors',
    executor = base .. 'executor:',
    seen = base .. 'seen:',
    ticket = base .. 'ticket:',
    triggers = base .. 'triggers',
    onset = base .. 'onset',
    tstats = base .. 'tstats:',
    event = base .. 'ev:',
    inflight = base .. 'inflight:',
    latest = base .. 'latest:',
    lead = base .. 'lead:',
    due = base .. 'due:',
  }
end
