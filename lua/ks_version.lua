--- KS_VERSION: which library this server has.
-- Returns: [version, digest]: a number that grows with every change that a client or an executor can notice, and what
--   distinguishes the text from others of that version
-- Errors: BADARG
-- Flags: no-writes allow-stale

local function KS_VERSION(KEYS, ARGV)
  if KEYS[1] or ARGV[1] then
    raise('BADARG', 'KS_VERSION takes no keys and no arguments')
  end
  return { tonumber(release.number), release.digest }
end
