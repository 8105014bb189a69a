--- AI_PREDICT: run a model on values in hand, tensor keys, or both; results come back in the reply or go to keys.
-- KEYS[1..] key          every tensor key that ARGV names
-- ARGV[1] target         name, name@version or name@alias
-- ARGV[2..] arguments    INPUTS n spec... [NAMES n name...] [OUTPUTS n key...]; a spec: VALUE npy | KEY key | OWN key | REF key
--                        | HASH dtype n key... m field... [DEFAULT value | DEFAULTS m value...] | LIST dtype key start stop
--                        | ZSET dtype key start stop SCORES|MEMBERS [REV] | NUMBERS dtype n key... [DEFAULT.. | DEFAULTS..]
--                        | ROWS key n index...
--                        [TIMEOUT ms] [TICKET key [corr]] [ID client seq] [USER name] [PRIORITY HIGH|NORMAL|LOW]
-- Returns: a ticket to BLPOP; with TICKET the job id
-- Errors: BADARG BADNPY BADVALUE NOMODEL MODELFAILED NOTENSOR NOFEATURE WRONGTYPE BADINPUT BADDTYPE BADSHAPE TOOBIG BUSY
--   NOPERM TRYAGAIN
-- Flags: allow-cross-slot-keys

local function predict_parsed(KEYS, ARGV)
  local request = predict.parse(KEYS, ARGV, 1)
  request.key = KEYS[1]
  return submit.run(request)
end

local function AI_PREDICT(KEYS, ARGV)
  return submit.answered(predict_parsed, KEYS, ARGV)
end
