rand("seed", 3);
a = reshape(mod((1:160000) * 7919, 1009) / 1009, 400, 400);
x = ones(400, 1);
out = fopen("values.txt", "w");
for step = 1:280
  x = a * x;
  x = x / norm(x);
  e = sort(abs(eig(a(1:80, 1:80) + step * eye(80))));
  s = sprintf("%d %.8f %.8f", step, e(end), x(1));
  fprintf(out, "%s\n", s);
  pause(0.01);
  if mod(step, 28) == 0
    printf("%s\n", s);
    fflush(stdout);
  end
end
fclose(out);
printf("end %.8f\n", x(400));
