/**
 * How many leading inputs of an operator must be present, from the ONNX 1.20 schemas (formal parameters that are neither
 * optional nor variadic, the least over all versions since opset 7). Operators not listed may lack every input.
 */
const LEADING_INPUTS: readonly (readonly [count: number, operators: string])[] = [
  [
    1,
    `Abs Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh AveragePool Bernoulli BitwiseNot BlackmanWindow Cast Ceil Celu Clip
    ConcatFromSequence ConstantOfShape Cos Cosh DFT DepthToSpace Det Dropout DynamicQuantizeLinear Elu Erf Exp EyeLike
    Flatten Floor Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool HammingWindow HannWindow HardSigmoid HardSwish Hardmax
    Identity If ImageDecoder IsInf IsNaN LRN LeakyRelu Log LogSoftmax LpNormalization LpPool MaxPool
    MeanVarianceNormalization Mish Multinomial Neg NonZero Not OptionalGetElement Pad RandomNormalLike RandomUniformLike
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare RegexFullMatch Relu Resize Round Selu SequenceErase SequenceLength SequenceMap Shape Shrink Sigmoid
    Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze StringNormalizer
    StringSplit Swish Tan Tanh TfIdfVectorizer ThresholdedRelu TopK Transpose Trilu Unique Unsqueeze Upsample`,
  ],
  [
    2,
    `Add AffineGrid And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CenterCropPad Compress Conv ConvInteger
    ConvTranspose CumSum DequantizeLinear Div Equal Expand Gather GatherElements GatherND Gemm Greater GreaterOrEqual
    GridSample LayerNormalization Less LessOrEqual MatMul MatMulInteger MaxRoiPool MaxUnpool Mod Mul
    NegativeLogLikelihoodLoss NonMaxSuppression Or PRelu Pow QuantizeLinear RMSNormalization Reshape ReverseSequence STFT
    SequenceAt SequenceInsert SoftmaxCrossEntropyLoss StringConcat Sub TensorScatter Tile Xor`,
  ],
  [
    3,
    `Attention Col2Im DeformConv GRU GroupNormalization InstanceNormalization LSTM OneHot RNN Range RoiAlign
    RotaryEmbedding Scatter ScatterElements ScatterND Where`,
  ],
  [5, 'BatchNormalization MelWeightMatrix'],
  [8, 'QLinearConv QLinearMatMul'],
];

const COUNTS = new Map(
  LEADING_INPUTS.flatMap(([count, operators]) => operators.split(/\s+/).map((op) => [op, count] as const)),
);

/** How many leading inputs an operator of the ONNX domain cannot do without; 0 for operators that are not known. */
export function requiredInputs(domain: string, op: string): number {
  return domain === '' ? (COUNTS.get(op) ?? 0) : 0;
}
