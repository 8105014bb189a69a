--- lib errors: error replies of ours.
-- An error reply is one of the codes of docs/protocol.md section 8 and a text on one line. Errors are returned, not
-- raised: the server adds its own words to the text of an error that leaves a function by error().

--- An error reply: a code of ours, and a text that holds no unescaped text of the caller (see args.printable).
local function fail(code, text)
  return redis.error_reply(code .. ' ' .. text)
end
