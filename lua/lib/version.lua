--- lib version: which library this is. The loader puts number and digest in the places of the two words.

local version = { number = '@version@', digest = '@digest@' }
