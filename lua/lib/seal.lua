--- lib seal: signatures of entries. Whoever may submit may XADD by hand too, but only this library knows the secret, which
-- the loader puts in its place; empty: entries are not signed. No function may show it.

local seal = { secret = '', since = 0 } -- @seal@

seal.TRANSITION_MS = 60000 -- how long after the secret was new entries from before are taken
local id

-- What tells secrets apart without telling them.
function seal.id()
  if not id then
    id = seal.secret == '' and '' or string.sub(redis.sha1hex('id ' .. redis.sha1hex('id ' .. seal.secret)), 1, 16)
  end
  return id
end

-- A name that nobody can guess, where there is a secret.
function seal.unguessable(name)
  return seal.secret == '' and name or name .. '-' .. string.sub(redis.sha1hex(seal.secret .. name), 1, 16)
end

-- The signature over a header and count inline inputs: values[first], values[first + 2], ... Each with its length, so that
-- no two lists read alike; twice, since SHA-1 alone could be continued.
function seal.sign(values, first, count)
  local h = values[first]
  if count == 1 then
    local input = values[first + 2]
    return redis.sha1hex(seal.secret .. redis.sha1hex(seal.secret .. #h .. ':' .. h .. #input .. ':' .. input))
  end
  local parts = { seal.secret, #h, ':', h }
  for n = 1, count do
    local input = values[first + 2 * n]
    parts[#parts + 1] = #input .. ':'
    parts[#parts + 1] = input
  end
  return redis.sha1hex(seal.secret .. redis.sha1hex(table.concat(parts)))
end
