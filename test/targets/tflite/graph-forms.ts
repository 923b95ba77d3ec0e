/**
 * One small graph per op and form, in the text form of the IR. A graph without inputs reads %x : f32[1,8,12,12], one without
 * outputs gives %y.
 */
const weight = (shape: string, seed = 1): string => `%w : f32[${shape}] = const rand(${seed}, normal 0.2)`;
const bias = (length: number): string => `%b : f32[${length}] = const rand(2, normal 0.2)`;
const conv = (attributes: string, shape = '16,8,3,3'): string =>
  `${weight(shape)}\n${bias(16)}\n%y = Conv(%x, %w, %b) {${attributes}}`;
const scales = '%s : f32[4] = const [1.0, 1.0, 2.0, 2.0]';
const resize = (attributes: string): string => `${scales}\n%y = Resize(%x, _, %s) {${attributes}}`;
const resizeTo = (size: string, attributes: string): string =>
  `%s : i64[4] = const [1, 8, ${size}]\n%y = Resize(%x, _, _, %s) {${attributes}}`;
const unary = (op: string): string => `%y = ${op}(%x)`;
const binary = (op: string): string => `in %x : f32[1,8,12,12]\nin %z : f32[1,8,1,12]\n%y = ${op}(%x, %z)`;
const reduce = (op: string, axes: string, attributes = 'keepdims 1'): string =>
  `%axes : i64[${axes.split(',').length}] = const [${axes}]\n%y = ${op}(%x, %axes) {${attributes}}`;
const positive = '%offset : f32[] = const 0.5\n%abs = Abs(%x)\n%p = Add(%abs, %offset)';

export const FORMS: Readonly<Record<string, string>> = {
  'Conv, pads like SAME': conv('pads [1, 1, 1, 1]'),
  'Conv, no pads': conv('strides [1, 1]'),
  'Conv, stride 2 with pads unlike SAME': conv('pads [1, 1, 1, 1], strides [2, 2]'),
  'Conv, auto_pad SAME_UPPER': conv('auto_pad "SAME_UPPER", strides [2, 2]'),
  'Conv, auto_pad SAME_LOWER': conv('auto_pad "SAME_LOWER", strides [2, 2]'),
  'Conv, asymmetric pads': conv('pads [0, 1, 2, 1]'),
  'Conv, dilated': conv('pads [2, 2, 2, 2], dilations [2, 2]'),
  'Conv, in groups': conv('pads [1, 1, 1, 1], group 4', '16,2,3,3'),
  'Conv, depthwise': `${weight('8,1,3,3')}\n${bias(8)}\n%y = Conv(%x, %w, %b) {pads [1, 1, 1, 1], group 8}`,
  'Conv, depthwise, two outputs a channel': conv('pads [1, 1, 1, 1], group 8', '16,1,3,3'),
  'Conv, without a bias': `${weight('16,8,1,1')}\n%y = Conv(%x, %w)`,
  'Conv, 1-D': `in %x : f32[1,8,20]\n${weight('16,8,3')}\n%y = Conv(%x, %w) {pads [2, 0], dilations [1], strides [2]}`,
  'Conv and Relu': `${weight('16,8,3,3')}\n%c = Conv(%x, %w)\n%y = Relu(%c)`,
  'Conv and Relu6': `${weight('16,8,3,3')}\n%c = Conv(%x, %w)\n%lo : f32[] = const 0.0\n%hi : f32[] = const 6.0\n%y = Clip(%c, %lo, %hi)`,
  'ConvTranspose, doubling': `${weight('8,6,2,2')}\n${bias(6)}\n%y = ConvTranspose(%x, %w, %b) {strides [2, 2]}`,
  'ConvTranspose, cropped': `${weight('8,6,3,3')}\n%y = ConvTranspose(%x, %w) {strides [2, 2], pads [1, 1, 1, 1], output_padding [1, 1]}`,
  'ConvTranspose, in groups': `${weight('8,2,3,3')}\n%y = ConvTranspose(%x, %w) {strides [2, 2], group 4}`,
  'ConvTranspose, 1-D': `in %x : f32[1,8,9]\n${weight('8,6,3')}\n%y = ConvTranspose(%x, %w) {strides [2], pads [1, 0]}`,
  'MaxPool, padded': '%y = MaxPool(%x) {kernel_shape [3, 3], pads [1, 1, 1, 1], strides [2, 2]}',
  'MaxPool, ceil_mode': '%y = MaxPool(%x) {kernel_shape [3, 3], strides [2, 2], ceil_mode 1}',
  'MaxPool, 1-D': 'in %x : f32[1,8,20]\n%y = MaxPool(%x) {kernel_shape [2], strides [2]}',
  'AveragePool, halving': '%y = AveragePool(%x) {kernel_shape [2, 2], strides [2, 2]}',
  'AveragePool, pads not counted': '%y = AveragePool(%x) {kernel_shape [3, 3], pads [1, 1, 1, 1]}',
  'AveragePool, pads counted': '%y = AveragePool(%x) {kernel_shape [3, 3], pads [1, 1, 1, 1], count_include_pad 1}',
  GlobalAveragePool: unary('GlobalAveragePool'),
  GlobalMaxPool: unary('GlobalMaxPool'),
  'Resize, nearest, asymmetric, floor': resize(
    'mode "nearest", coordinate_transformation_mode "asymmetric", nearest_mode "floor"',
  ),
  'Resize, nearest, half_pixel': resize('mode "nearest"'),
  'Resize, nearest, half_pixel, ceil': resize('mode "nearest", nearest_mode "ceil"'),
  'Resize, nearest, align_corners': resizeTo('17, 7', 'mode "nearest", coordinate_transformation_mode "align_corners"'),
  'Resize, nearest, down': resizeTo('5, 7', 'mode "nearest", nearest_mode "round_prefer_ceil"'),
  'Resize, linear, half_pixel': resize('mode "linear"'),
  'Resize, linear, align_corners': resizeTo('17, 7', 'mode "linear", coordinate_transformation_mode "align_corners"'),
  'Resize, linear, asymmetric': resize('mode "linear", coordinate_transformation_mode "asymmetric"'),
  'Resize, linear, down': resizeTo('6, 4', 'mode "linear"'),
  DepthToSpace: '%y = DepthToSpace(%x) {blocksize 2}',
  'DepthToSpace, CRD': '%y = DepthToSpace(%x) {blocksize 2, mode "CRD"}',
  SpaceToDepth: '%y = SpaceToDepth(%x) {blocksize 2}',
  'Resize, cubic': resize('mode "cubic"'),
  'TopK, rows': '%k : i64[1] = const [3]\n%y : f32[1,8,12,3], %i : i64[1,8,12,3] = TopK(%x, %k)\nout %y',
  'TopK, channels, the smallest':
    '%k : i64[1] = const [3]\n%y : f32[1,3,12,12], %i : i64[1,3,12,12] = TopK(%x, %k) {axis 1, largest 0}\nout %y',
  'ScatterND, constant places':
    'in %x : f32[6,5]\nin %u : f32[2,5]\n%i : i64[2,1] = const [4, -5]\n%y = ScatterND(%x, %i, %u)',
  'ScatterND, sums':
    'in %x : f32[6,5]\nin %u : f32[2,5]\n%i : i64[2,1] = const [4, 4]\n%y = ScatterND(%x, %i, %u) {reduction "add"}',
  'GatherElements, constant places':
    'in %x : f32[6,5]\n%i : i64[2,5] = const [0, 1, 2, 3, 4, 5, -1, -2, -3, -4]\n%y = GatherElements(%x, %i) {axis 0}',
  Softplus: unary('Softplus'),
  Selu: unary('Selu'),
  GRU: `in %x : f32[3,1,6]\n%w : f32[1,12,6] = const rand(1, normal 0.3)\n%r : f32[1,12,4] = const rand(2, normal 0.3)\n%b : f32[1,24] = const rand(3, normal 0.3)\n%y : f32[3,1,1,4] = GRU(%x, %w, %r, %b) {hidden_size 4, linear_before_reset 1}`,
  RNN: `in %x : f32[3,1,6]\n%w : f32[1,4,6] = const rand(1, normal 0.3)\n%r : f32[1,4,4] = const rand(2, normal 0.3)\n%y : f32[3,1,1,4] = RNN(%x, %w, %r) {hidden_size 4}`,
  Add: binary('Add'),
  Sub: binary('Sub'),
  Mul: binary('Mul'),
  Max: binary('Max'),
  Min: binary('Min'),
  'Div by what is positive': `in %x : f32[1,8,12,12]\nin %z : f32[1,8,12,12]\n${positive}\n%y = Div(%z, %p)`,
  'Add, constant per channel': '%c : f32[8,1,1] = const rand(3, normal 0.5)\n%y = Add(%x, %c)',
  'Mul, computed per channel': 'in %x : f32[1,8,12,12]\nin %g : f32[8,1,1]\n%y = Mul(%x, %g)',
  'Max of ranges that differ':
    'in %x : f32[1,8,12,12]\nin %z : f32[1,8,12,12]\n%k : f32[] = const 4.0\n%a = Mul(%x, %k)\n%y = Max(%a, %z)',
  'Pow, 2': '%e : f32[] = const 2.0\n%y = Pow(%x, %e)',
  'Pow, 3': `${positive}\n%e : f32[] = const 3.0\n%y = Pow(%p, %e)`,
  Sqrt: `${positive}\n%y = Sqrt(%p)`,
  Log: `${positive}\n%y = Log(%p)`,
  Reciprocal: `${positive}\n%y = Reciprocal(%p)`,
  Exp: unary('Exp'),
  Abs: unary('Abs'),
  Neg: unary('Neg'),
  Sin: unary('Sin'),
  Floor: '%k : f32[] = const 4.0\n%a = Mul(%x, %k)\n%f = Floor(%a)\n%y = Mul(%f, %k)',
  Sigmoid: unary('Sigmoid'),
  Tanh: unary('Tanh'),
  Relu: unary('Relu'),
  HardSwish: unary('HardSwish'),
  HardSigmoid: unary('HardSigmoid'),
  LeakyRelu: '%y = LeakyRelu(%x) {alpha 0.1}',
  'PRelu, slope per channel': '%s : f32[8,1,1] = const rand(2, uniform 0.1 0.5)\n%y = PRelu(%x, %s)',
  Elu: unary('Elu'),
  'Clip, other bounds': '%lo : f32[] = const -0.5\n%hi : f32[] = const 0.25\n%y = Clip(%x, %lo, %hi)',
  'Softmax, last axis': '%y = Softmax(%x) {axis -1}',
  'Softmax, channels': '%y = Softmax(%x) {axis 1}',
  'Softmax, rows': '%y = Softmax(%x) {axis 2}',
  'Where, of a comparison':
    'in %x : f32[1,8,12,12]\nin %z : f32[1,8,12,12]\n%zero : f32[] = const 0.0\n%c = Greater(%x, %zero)\n%y = Where(%c, %x, %z)',
  'ReduceMean, rows and columns': reduce('ReduceMean', '2, 3'),
  'ReduceMean, channels': reduce('ReduceMean', '1'),
  'ReduceMean, last axis, not kept': reduce('ReduceMean', '-1', 'keepdims 0'),
  'ReduceSum, rows': reduce('ReduceSum', '2'),
  'ReduceMax, rows and columns, not kept': reduce('ReduceMax', '2, 3', 'keepdims 0'),
  'ReduceMin, columns': reduce('ReduceMin', '3'),
  'Reshape of an image': '%s : i64[3] = const [1, 96, 12]\n%y = Reshape(%x, %s)',
  'Transpose to channels last': '%y = Transpose(%x) {perm [0, 2, 3, 1]}',
  'Concat, channels': 'in %x : f32[1,8,12,12]\nin %z : f32[1,4,12,12]\n%y = Concat(%x, %z) {axis 1}',
  'Split, channels': '%n : i64[2] = const [3, 5]\n%a, %y = Split(%x, %n) {axis 1}\nout %a\nout %y',
  'Slice, rows, step 2':
    '%s : i64[1] = const [1]\n%e : i64[1] = const [11]\n%a : i64[1] = const [2]\n%t : i64[1] = const [2]\n%y = Slice(%x, %s, %e, %a, %t)',
  'Slice, backwards':
    '%s : i64[1] = const [-1]\n%e : i64[1] = const [-13]\n%a : i64[1] = const [3]\n%t : i64[1] = const [-1]\n%y = Slice(%x, %s, %e, %a, %t)',
  'Pad, zeros': '%p : i64[8] = const [0, 0, 1, 2, 0, 0, 0, 3]\n%y = Pad(%x, %p)',
  'Pad, a number': '%p : i64[8] = const [0, 0, 1, 2, 0, 0, 0, 3]\n%v : f32[] = const -0.5\n%y = Pad(%x, %p, %v)',
  'Pad, reflect': '%p : i64[8] = const [0, 0, 1, 2, 0, 0, 2, 1]\n%y = Pad(%x, %p) {mode "reflect"}',
  'Pad, edge': '%p : i64[8] = const [0, 0, 1, 2, 0, 0, 2, 1]\n%y = Pad(%x, %p) {mode "edge"}',
  Expand: 'in %x : f32[1,8,1,12]\n%s : i64[4] = const [2, 8, 3, 12]\n%y = Expand(%x, %s)',
  Tile: '%r : i64[4] = const [1, 2, 1, 3]\n%y = Tile(%x, %r)',
  'Gather, places from the end': '%i : i64[3] = const [-1, 0, 2]\n%y = Gather(%x, %i) {axis 2}',
  CumSum: '%a : i64[] = const 3\n%y = CumSum(%x, %a)',
  'MatMul, a weight': 'in %x : f32[1,6,16]\n%w : f32[16,10] = const rand(1, normal 0.2)\n%y = MatMul(%x, %w)',
  'MatMul, a batch': 'in %x : f32[1,4,6,16]\nin %z : f32[1,4,16,5]\n%y = MatMul(%x, %z)',
  'MatMul, transposed':
    'in %x : f32[1,4,6,16]\nin %z : f32[1,4,5,16]\n%t = Transpose(%z) {perm [0, 1, 3, 2]}\n%y = MatMul(%x, %t)',
  'Gemm, transB': `in %x : f32[3,16]\n%w : f32[10,16] = const rand(1, normal 0.2)\n${bias(10)}\n%y = Gemm(%x, %w, %b) {transB 1}`,
  'Gemm, factors': `in %x : f32[3,16]\n%w : f32[16,10] = const rand(1, normal 0.2)\n${bias(10)}\n%y = Gemm(%x, %w, %b) {alpha 0.5}`,
  'Gemm of a flattened image': `${weight('4,8,3,3')}\n%c = Conv(%x, %w)\n%f = Flatten(%c)\n%v : f32[400,10] = const rand(4, normal 0.1)\n${bias(10)}\n%y = Gemm(%f, %v, %b)`,
  LayerNormalization:
    'in %x : f32[1,6,16]\n%g : f32[16] = const rand(1, uniform 0.5 1.5)\n%b : f32[16] = const rand(2, normal 0.2)\n%y = LayerNormalization(%x, %g, %b)',
  InstanceNormalization:
    '%s : f32[8] = const rand(1, uniform 0.5 1.5)\n%t : f32[8] = const rand(2, normal 0.5)\n%y = InstanceNormalization(%x, %s, %t)',
  'Sum of three': 'in %x : f32[1,8,12,12]\nin %z : f32[1,8,12,12]\n%y = Sum(%x, %z, %x)',
  BatchNormalization:
    '%s : f32[8] = const rand(1, uniform 0.5 1.5)\n%t : f32[8] = const rand(2, normal 0.5)\n%m : f32[8] = const rand(3, normal 0.5)\n%v : f32[8] = const rand(4, uniform 0.5 1.5)\n%r = Relu(%x)\n%y = BatchNormalization(%r, %s, %t, %m, %v)',
};

/** A form whose input is computed: what is only moved from an input to an output stays float, whatever the scheme. */
export function computed(body: string): string {
  const lines = body.split('\n');
  const input = lines.find((line) => line.startsWith('in %x ')) ?? 'in %x : f32[1,8,12,12]';
  const rest = lines.filter((line) => line !== input);
  return [input.replace('%x', '%raw'), '%x = Neg(%raw)', ...rest].join('\n');
}

/** The whole text of a form. */
export function formText(body: string): string {
  const lines = body.split('\n');
  const starts = (word: string): boolean => lines.some((line) => line.startsWith(`${word} `));
  const all = [
    ...(starts('in') ? [] : ['in %x : f32[1,8,12,12]']),
    ...lines.filter((line) => line.startsWith('in ')),
    ...lines.filter((line) => !line.startsWith('in ')),
    ...(starts('out') ? [] : ['out %y']),
  ];
  return `npuir 1\nopset 21\n\ngraph @form\n${all.map((line) => `  ${line}\n`).join('')}`;
}
