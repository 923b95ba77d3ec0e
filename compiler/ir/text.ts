/**
 * The text form of the IR: what pass tests are written in; a file with `rand` constants is a runnable tiny model.
 *
 *     npuir 1
 *     opset 23
 *     opset com.microsoft 1
 *     state k0 append f32[2,1,256,64] axis 2 initial 0.0
 *     tie %past_k0 %new_k0
 *
 *     graph @prefill {tokens 64, cache 256}
 *       in %x : f32[1,64,256]
 *       in %past_k0 : f32[2,1,192,64] q(u8, scale 0.0121, zero 128) quantized
 *       %g : f32[256] = const rand(7, normal 0.02)
 *       %h : f32[1,64,256] q(u16, scale 3.05e-5, zero 32768) = RMSNormalization(%x, %g) {epsilon 1e-6}  ; from Pow_3 Mul_9
 *       %y : f32[1,64,256] = If(%flag) {then_branch graph @yes
 *           %a : f32[1,64,256] = Neg(%h)
 *           out %a
 *         end, else_branch graph @no
 *           out %h
 *         end}
 *       out %y
 *       out %new_k0 quantized
 *       state k0 : %past_k0 -> %new_k0
 *
 * - One definition a line, newlines free inside any bracket; `//` starts a comment. Values are `%name`, graphs `@name`,
 *   both quoted as JSON strings when they hold more than letters, digits and `_ . /`. `_` is an absent input or output.
 * - Types: `f32[1,64]`, `f32[batch,past + tokens]`, `f32` (rank unknown), `sequence(f32)`, `optional(f32)`,
 *   `map(i64, f32)`, `?`; a value without a type has none yet.
 * - Constants: `const 0.5`, `const [1, 2]`, `const fill 0.0`, `const rand(seed, normal 0.02)`, `rand(seed, uniform -1 1)`,
 *   `rand(seed, int 0 10)`, `const raw "hex"`, `const #digest` (data elsewhere); `payload [...]` after them are the integers
 *   chosen for the value's encoding.
 * - Encodings: `q(u8, scale s, zero z)`; per channel `axis a, scale [...]`; per block `axis a, block b, scale [...]`; LPBQ
 *   `axis a, block b, channel c, scale [...], blockscale [...]`.
 * - Attributes: an integer without a point is an int, any other number a float; `[...]` lists, `ints[]` an empty one;
 *   `tensor f32[2] [1, 2]`, `type f32[2]`, `raw "hex"` (an AttributeProto), `graph @name ... end`.
 * - A node's name is `<first output>/<operator>` unless `as "name"` says otherwise; `; from a b` are the user's own nodes.
 * - What a source format adds and no pass reads (`extras`, `unknown`) is not printed.
 */
export { type ParseOptions, parseModule } from './text-parse.ts';
export { type PrintOptions, printGraph, printModule, printNode, printType } from './text-print.ts';
