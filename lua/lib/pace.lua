--- lib pace: how fast jobs end, so that who is refused can be told when to come again. Only an estimate, so it may live in
-- locals; what ends jobs takes note, at no cost to the server.

local pace = {}

local WINDOW_MS = 1000 -- an estimate is over the last one to two of these
local STALE_MS = 10000 -- nothing has ended for so long: then nobody knows
local UNKNOWN_MS, MOST_MS = 1000, 10000
local NAMES_MAX = 512

local paces, count = {}, 0

-- `ended` jobs of what is called `name` have ended.
function pace.note(name, ended, now)
  local found = paces[name]
  if not found then
    if count >= NAMES_MAX then
      paces, count = {}, 0
    end
    count = count + 1
    paces[name] = { ended = ended, since = now, before = 0, from = now, last = now }
    return
  end
  if now - found.since >= WINDOW_MS then
    found.before, found.from = found.ended, found.since
    found.ended, found.since = 0, now
  end
  found.ended = found.ended + ended
  found.last = now
end

-- Milliseconds until so many more have ended, most likely.
function pace.ms(name, wanted, now)
  local found = paces[name]
  if not found or now - found.last > STALE_MS or now < found.from then
    return UNKNOWN_MS
  end
  local span = math.max(now - found.from, 1)
  return math.max(1, math.min(math.ceil(wanted * span / (found.before + found.ended)), MOST_MS))
end
