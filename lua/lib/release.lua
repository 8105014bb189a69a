--- lib release: which library this is. The loader puts number and digest in the places of the two words.

local release = { number = '@version@', digest = '@digest@' }
