# MLflow's own image has neither Postgres' nor S3's client.
FROM python:3.11.14-slim-bookworm
RUN pip install --no-cache-dir "mlflow==3.17.2" "psycopg2-binary==2.9.11" "boto3>=1.40,<2" \
    && useradd --create-home --uid 10001 --no-log-init mlflow
USER 10001
WORKDIR /home/mlflow
