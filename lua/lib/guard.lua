--- @requires args
-- raise() ends a function from any depth with a code of ours; guarded() turns what was raised, and what Redis itself
-- refused, into an error reply. A bare error() would reach the caller with a script name and a line number behind it.

local function raise(code, text)
  error({ err = code .. ' ' .. text }, 0)
end

-- The text of the error reply for what a callback raised.
local function raised_text(raised)
  -- The server's own pcall gives the text of an error, not the table that was raised.
  local text = type(raised) == 'table' and raised.err or tostring(raised)
  if string.find(text, 'non local key', 1, true) then
    return 'TRYAGAIN a key of this call is not on this node now: send it again, to the owner of its slot'
  end
  -- What the caller may not do himself a function may not do for him; Redis and Valkey say so in their own ways.
  local refused = string.match(text, '^ERR ACL failure in script: (.+)') or string.match(text, '^ERR (The user executing the script.+)')
  if refused then
    return 'NOPERM ' .. refused
  end
  if not string.find(text, '^%u+ ') then
    return 'ERR internal: ' .. text
  end
  return text
end

local function guarded(callback)
  return function(keys, args)
    local ok, reply = pcall(callback, keys, args)
    if ok then
      return reply
    end
    return redis.error_reply(raised_text(reply))
  end
end
