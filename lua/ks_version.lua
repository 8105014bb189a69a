--- KS_VERSION: which library this server has.
-- Returns: the version, a number that grows with every change that clients or executors can notice, and a digest of the text
-- Errors: BADARG
-- Flags: no-writes allow-stale

local function KS_VERSION(KEYS, ARGV)
  if KEYS[1] or ARGV[1] then
    raise('BADARG', 'KS_VERSION takes no keys and no arguments')
  end
  return { tonumber(release.number), release.digest }
end
